//! The known name that was probably meant.

/// Below this similarity (Jaro-Winkler, 0 to 1) two names have nothing to do with each other.
const SIMILAR: f64 = 0.6;

/// Returns the known name that is most similar to `name`; `None` if no name is similar.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let rated = known.into_iter().map(|known| (strsim::jaro_winkler(name, known), known));
    rated.filter(|(similarity, _)| *similarity > SIMILAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}
