//! Conversations: events that change no profile, and name customers who will probably be looked up.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::{CustomerQuery, Identifier, Shape};

use super::PostedEvent;
use super::fields::{CustomerList, Doubt, OptionalPart, OptionalText};

/// The maximum number of contacts that are read from one conversation.
const MAX_IN_CONVERSATION: usize = 10;

/// Reads the customers of a conversation. It changes no profile, so one that cannot be read is ignored.
pub(super) fn read(body: Option<&RawValue>, shape: Shape) -> PostedEvent {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ConversationBody {
        #[serde(default)]
        external_contact_id: OptionalText,
        #[serde(default)]
        conversation_external_contact_ids: OptionalPart<Vec<OptionalText>>,
        #[serde(default)]
        ani: OptionalText,
    }
    let body = body.and_then(|body| serde_json::from_str::<ConversationBody>(body.get()).ok()).unwrap_or_default();
    let mut customers = CustomerList::default();
    let more = Doubt::default().part(&body.conversation_external_contact_ids).into_iter().flatten();
    for id in std::iter::once(&body.external_contact_id).chain(more).take(MAX_IN_CONVERSATION) {
        // Neither an unreadable id nor one too many is a fault of an event that changes nothing.
        let _ = customers.add_optional("", "externalContactId", id, &mut Doubt::default());
    }
    let mut customers: Vec<_> = customers.ids.into_iter().map(CustomerQuery::Id).collect();
    if customers.is_empty()
        && let Some(number) = Doubt::default().text(&body.ani)
    {
        // Genesys writes the number of a call as tel:+13175550125; other media have none.
        customers.extend(Identifier::phone(number, None).ok().map(CustomerQuery::Identifier));
    }
    if customers.is_empty() {
        return PostedEvent::Ignored { shape, reason: "a conversation that names no contact and no phone number" };
    }
    PostedEvent::Conversation { shape, customers }
}
