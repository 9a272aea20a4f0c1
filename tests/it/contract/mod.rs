//! One contract suite per port, run on every adapter.

mod again;
mod histories;
pub(crate) mod memcached;
mod memcached_orders;
mod queue;
mod rabbit;
mod redis;
mod restores;
mod sealed;
pub(crate) mod store;
