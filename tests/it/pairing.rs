//! Tests that run on every pairing of adapters.

/// Creates a test of each function for each pairing. The pairing is the argument of the function.
macro_rules! on_every_pairing {
    ($($case:ident),+ $(,)?) => {
        $crate::pairing::on_every_pairing!(@pairing embedded, Embedded, $($case),+);
        $crate::pairing::on_every_pairing!(@pairing redis, Redis, $($case),+);
        $crate::pairing::on_every_pairing!(@pairing memcached, Memcached, $($case),+);
        $crate::pairing::on_every_pairing!(@pairing redis_and_rabbitmq, RedisAndRabbit, $($case),+);
    };
    (@pairing $module:ident, $pairing:ident, $($case:ident),+) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case($crate::support::edge::Pairing::$pairing).await;
            })+
        }
    };
}
pub(crate) use on_every_pairing;
