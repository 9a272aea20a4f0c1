//! Phone numbers and e-mail addresses that move between two customers all the while; both are called numbers here.
//!
//! In the record a number is a customer of its own, whose versions are its moves: the owner's `title` shows the move. Its
//! lookups have an answer that is judged like any other. A profile that shows no move is that of somebody who does not have
//! the number, and is impossible.
//!
//! The next owner gets the number before the last one loses it, and Genesys finds the contact that changed last. So from the
//! first move on, somebody has the number at any moment, and 404 is a fault.

use rand::RngExt;
use serde_json::{Value, json};

use super::history::{ChangeKind, CustomerNumber};
use super::load::ProfileWriter;

/// A number and the customers between whom it moves. Nothing else changes these customers.
#[derive(Debug)]
pub(super) struct MovingNumber {
    number: CustomerNumber,
    /// The field of its owner, and what this field holds.
    field: &'static str,
    value: Value,
    /// The owner first; before the first move nobody is.
    customers: [CustomerNumber; 2],
    is_owned: bool,
}

impl ProfileWriter {
    /// Takes two of its customers for a phone number or an e-mail address that moves between them.
    pub(super) fn with_number(mut self, identifier: String) -> Self {
        let mut take = || self.profiles.pop().and_then(|profile| profile.last().copied()).expect("a customer");
        let customers = [take(), take()];
        let (field, value) = match identifier.starts_with('+') {
            true => ("workPhone", json!({ "e164": identifier })),
            false => ("workEmail", json!(identifier)),
        };
        let number = self.stage.add_number(identifier);
        self.moving = Some(MovingNumber { number, field, value, customers, is_owned: false });
        self
    }

    /// Moves the number, if this writer has one.
    pub(super) async fn move_number(&mut self) {
        let Some(mut moving) = self.moving.take() else { return };
        let [owner, next] = moving.customers;
        self.set_number(next, (moving.field, &moving.value), vec![next, moving.number]).await;
        if rand::rng().random_range(0..3) == 0 {
            let number = self.number();
            self.patch(next, json!({ "firstName": format!("v{number}") }), number, vec![next]).await;
        }
        if moving.is_owned {
            self.set_number(owner, (moving.field, &Value::Null), vec![owner]).await;
        }
        (moving.customers, moving.is_owned) = ([next, owner], true);
        self.moving = Some(moving);
    }

    async fn set_number(&mut self, of: CustomerNumber, (field, value): (&str, &Value), changed: Vec<CustomerNumber>) {
        let number = self.number();
        let title = if value.is_null() { Value::Null } else { json!(format!("m{number}")) };
        let body = json!({ "firstName": format!("v{number}"), "title": title, field: value });
        self.patch(of, body, number, changed).await;
    }

    async fn patch(&mut self, customer: CustomerNumber, body: Value, number: u32, changed: Vec<CustomerNumber>) {
        let path = format!("/{}", self.stage.id(customer));
        self.change("PATCH", &path, body, number, ChangeKind::Write, changed).await;
    }
}
