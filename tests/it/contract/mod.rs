//! One contract suite per port, run on every adapter.

mod queue;
mod store;
