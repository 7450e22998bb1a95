//! Reconciles namespaces that the operator may list for the first time, after the API server has
//! refused it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use crate::state::Context;
use crate::state::user_ref::user_ref;

/// Reconciles recovered namespaces until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let refused = context.runtime.refused.clone();
    while let Some(recovered) = stop.run_until_cancelled(refused.recovered()).await {
        for namespace in recovered {
            for user in context.users.usernames().names(&namespace) {
                context.users.queue.push(user_ref(&namespace, &user));
            }
        }
        context.services.credentials_queue.all_changed();
        // Realms without users are known from Redis, and the monitor has skipped the refills.
        context.runtime.is_search_due.store(true, Ordering::Relaxed);
        context.runtime.realm_removals.notify_one();
        context.realms.registry.changed.notify_one();
    }
}
