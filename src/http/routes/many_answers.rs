//! The answers to the lookups of one request. A customer that is named several times is looked up once.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tracing::Instrument;

use crate::domain::{CustomerQuery, DisclosedFields, TenantId};
use crate::lookup::{LookupAnswer, LookupError, Phases};
use crate::metrics::LookupResult;
use crate::shares::Share;
use crate::spans;

use crate::http::auth::callers::Caller;
use crate::http::response::batch_body::BatchText;
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_api::{LookupApi, max_age};

/// The answers to the lookups of one request.
pub(super) struct ManyAnswers {
    /// The customers, each once, with their answers.
    pub(super) distinct: Vec<(CustomerQuery, Result<LookupAnswer, Problem>)>,
    /// For each lookup of the request the number of its customer.
    pub(super) order: Vec<usize>,
}

impl LookupApi {
    /// Looks up several customers for a caller, who may read the tenant; `None` if the tenant is not configured. Failures are
    /// logged in one line, with the first of them.
    pub(super) async fn look_up_many(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        tenant: &TenantId,
        customers: Vec<CustomerQuery>,
        phases: &mut Phases,
    ) -> Option<ManyAnswers> {
        let (distinct, order) = self.distinct(tenant, customers);
        let (span, requester) = (spans::lookup(headers, tenant, &caller.name), caller.requester());
        let answers = self.lookup.get_many(tenant, &distinct, &requester, max_age(caller, headers), phases);
        let answers = answers.instrument(span).await?;
        self.log_failures(tenant, caller, &distinct, &answers);
        let answers = answers.into_iter().map(|answer| answer.map_err(|failure| Problem::of_failure(&failure)));
        Some(ManyAnswers { distinct: distinct.into_iter().zip(answers).collect(), order })
    }

    /// Returns the customers without repetitions, and for each customer of the request its number among them.
    fn distinct(&self, tenant: &TenantId, customers: Vec<CustomerQuery>) -> (Vec<CustomerQuery>, Vec<usize>) {
        let (mut numbers, mut distinct) = (HashMap::new(), Vec::with_capacity(customers.len()));
        let number = |customer: CustomerQuery| {
            let key = self.hasher.identify(tenant, &customer).map(|identity| identity.key());
            // Without a key there is no such lookup: each fails by itself.
            let number = key.map_or(distinct.len(), |key| *numbers.entry(key).or_insert(distinct.len()));
            if number == distinct.len() {
                distinct.push(customer);
            }
            number
        };
        let order = customers.into_iter().map(number).collect();
        (distinct, order)
    }

    fn log_failures(
        &self,
        tenant: &TenantId,
        caller: &Caller,
        customers: &[CustomerQuery],
        answers: &[Result<LookupAnswer, LookupError>],
    ) {
        let mut failures =
            customers.iter().zip(answers).filter_map(|(customer, answer)| Some((customer, answer.as_ref().err()?)));
        let Some((customer, failure)) = failures.next() else { return };
        let problem = self.log_failure(failure, tenant, customer, caller);
        let failed = 1 + failures.count();
        if failed > 1 {
            tracing::warn!(failed, code = problem.code(), caller = %caller.name, "several lookups of a batch failed");
        }
    }

    /// Takes the memory of an answer from the caller's share of what all answers of batches may use.
    ///
    /// # Errors
    ///
    /// 503 if too little is left, for all or for this caller.
    pub(super) fn reserve(&self, caller: &Caller, text: &mut BatchText) -> Result<Share, Problem> {
        self.answers.take(&caller.share(), text.memory()).map_err(|_no_share| {
            let detail = "too many bytes of batch answers that their clients have not read";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shed", detail).retry_after(Duration::from_secs(1))
        })
    }
}

impl ManyAnswers {
    /// Returns the customer of each lookup of the request, with the result of its lookup and what is `shown` of it.
    pub(super) fn recorded<'a>(
        &'a self,
        shown: &'a [DisclosedFields],
    ) -> impl Iterator<Item = (&'a CustomerQuery, LookupResult, DisclosedFields)> {
        self.order.iter().map(|number| {
            let (customer, answer) = &self.distinct[*number];
            (customer, answer.as_ref().map_or(LookupResult::Error, LookupAnswer::result), shown[*number].clone())
        })
    }
}
