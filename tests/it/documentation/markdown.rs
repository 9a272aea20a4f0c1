//! Reads from a Markdown page what it cites: code spans, code blocks, links, and headings.

use std::collections::{BTreeMap, BTreeSet};

/// A piece of a page, and the line on which it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) line: usize,
    pub(super) text: String,
}

/// A fenced block of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) language: String,
    pub(super) code: Piece,
}

/// What a page holds.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) spans: Vec<Piece>,
    pub(super) blocks: Vec<Block>,
    /// The targets of links and images.
    pub(super) links: Vec<Piece>,
    pub(super) headings: Vec<String>,
    /// The anchors of the headings, as GitHub makes them.
    pub(super) anchors: BTreeSet<String>,
}

impl Page {
    pub(super) fn read(text: &str) -> Self {
        let (mut page, mut taken) = (Self::default(), BTreeMap::new());
        let mut paragraph: Option<Piece> = None;
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
        while let Some((number, line)) = lines.next() {
            let trimmed = line.trim_start();
            let fence = ["```", "~~~"].into_iter().find(|fence| trimmed.starts_with(fence));
            let heading = fence.is_none().then(|| heading(line)).flatten();
            if fence.is_some() || heading.is_some() || trimmed.is_empty() {
                page.end_paragraph(paragraph.take());
            }
            if let Some(fence) = fence {
                let language = trimmed.trim_matches(['`', '~']).trim().to_owned();
                let code =
                    lines.by_ref().map(|(_, line)| line).take_while(|line| !line.trim_start().starts_with(fence));
                let text = code.collect::<Vec<_>>().join("\n");
                page.blocks.push(Block { language, code: Piece { line: number + 1, text } });
            } else if let Some(heading) = heading {
                let slug = slug(heading);
                let repetition: &mut usize = taken.entry(slug.clone()).or_default();
                page.anchors.insert(if *repetition == 0 { slug } else { format!("{slug}-{repetition}") });
                *repetition += 1;
                page.headings.push(heading.to_owned());
                page.end_paragraph(Some(Piece { line: number, text: heading.to_owned() }));
            } else if !trimmed.is_empty() {
                let paragraph = paragraph.get_or_insert_with(|| Piece { line: number, text: String::new() });
                paragraph.text.push_str(line);
                paragraph.text.push('\n');
            }
        }
        page.end_paragraph(paragraph);
        page
    }

    /// Takes code spans and links from a paragraph. A code span may continue on the next line.
    fn end_paragraph(&mut self, paragraph: Option<Piece>) {
        let Some(Piece { line, text }) = paragraph else { return };
        let line_of = |at: usize| line + text[..at].matches('\n').count();
        let (mut prose, mut at) = (String::new(), 0);
        while let Some(start) = text[at..].find('`').map(|found| at + found) {
            let ticks = text[start..].bytes().take_while(|byte| *byte == b'`').count();
            let inside = start + ticks;
            let fence = "`".repeat(ticks);
            let Some(length) = text[inside..].find(&fence) else { break };
            let span = text[inside..inside + length].replace('\n', " ");
            self.spans.push(Piece { line: line_of(start), text: span.trim().to_owned() });
            prose.push_str(&text[at..start]);
            // Positions stay the same, so that lines can be counted.
            prose.extend(text[start..inside + length + ticks].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            at = inside + length + ticks;
        }
        prose.push_str(&text[at..]);
        let inline = prose.match_indices("](").map(|(at, _)| (at, &prose[at + 2..], ')'));
        let referenced = prose.match_indices("]: ").map(|(at, _)| (at, &prose[at + 3..], '\n'));
        for (at, rest, end) in inline.chain(referenced.filter(|(at, ..)| starts_a_reference(&prose, *at))) {
            let target = rest.split(end).next().unwrap_or_default();
            let target = target.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']);
            let line = line + prose[..at].matches('\n').count();
            self.links.push(Piece { line, text: target.to_owned() });
        }
    }
}

/// Returns whether the bracket that closes here belongs to a link definition at the start of its line.
fn starts_a_reference(prose: &str, at: usize) -> bool {
    let line = prose[..at].rsplit('\n').next().unwrap_or_default();
    line.starts_with('[') && !line.contains(']')
}

fn heading(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches('#');
    let level = line.len() - rest.len();
    (1..=6).contains(&level).then(|| rest.strip_prefix(' ')).flatten().map(|text| text.trim().trim_end_matches(" #"))
}

/// Returns the anchor that GitHub gives a heading.
pub(super) fn slug(heading: &str) -> String {
    // Of a link in a heading only its text counts.
    let mut text = heading.to_owned();
    while let Some((start, end)) = text.find("](").and_then(|start| Some((start, start + text[start..].find(')')?))) {
        text.replace_range(start..=end, "");
        text = text.replacen('[', "", 1);
    }
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# The `edge` and its [docs](x.md)

A span `one
two`, a ``span with ` inside``, a [link](a/b.md#c \"title\")
and ![an image](<i.png>), `not a [link](no.md)`.

## Again
## Again

```toml
[store]
kind = \"redis\" # `no span`
```

[ref]: other.md
";

    #[test]
    fn spans_blocks_links_and_anchors_are_read_from_a_page() {
        let page = Page::read(PAGE);
        let piece = |line: usize, text: &str| Piece { line, text: text.to_owned() };
        let spans =
            [piece(1, "edge"), piece(3, "one two"), piece(4, "span with ` inside"), piece(5, "not a [link](no.md)")];
        assert_eq!(page.spans, spans);
        let links = [piece(1, "x.md"), piece(4, "a/b.md#c"), piece(5, "i.png"), piece(15, "other.md")];
        assert_eq!(page.links, links);
        let anchors = ["again", "again-1", "the-edge-and-its-docs"].map(str::to_owned);
        assert_eq!(page.anchors, BTreeSet::from(anchors));
        let code = piece(11, "[store]\nkind = \"redis\" # `no span`");
        assert_eq!(page.blocks, [Block { language: "toml".to_owned(), code }]);
    }

    #[test]
    fn slugs_follow_the_rules_of_github() {
        for (heading, expected) in [
            ("Run it for real", "run-it-for-real"),
            ("ProfileEdgeStoreDown: what to do?", "profileedgestoredown-what-to-do"),
            ("`queue.amqp` (RabbitMQ), *fast*", "queueamqp-rabbitmq-fast"),
            ("Ends -- and_begins", "ends----and_begins"),
        ] {
            assert_eq!(slug(heading), expected);
        }
    }
}
