//! Reads the Secrets of a realm's users in pages whose size in bytes has a bound, because the
//! tenants of the namespace can write large Secrets with the operator's label.

use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, Client};
use twofactor_api::labels;

use crate::k8s::request::{self, ApiError};

/// Number of Secrets in a page.
const PAGE: u32 = 500;
/// Maximum number of bytes of a page. A Secret of the operator has about 2 kB.
const PAGE_BYTES: u64 = 8 << 20;
/// Number of Secrets that are read by name at the same time.
const CONCURRENT: usize = 8;

/// The Secrets of the users of a namespace.
pub struct SecretPages {
    secrets: Api<Secret>,
    client: Client,
    parameters: ListParams,
    names: Vec<String>,
    next: NextPage,
}

/// What is read next.
enum NextPage {
    /// A page of the list.
    Listed,
    /// The Secrets from this name on, one by one, because a page was too large.
    ByName(usize),
    /// Nothing.
    None,
}

impl SecretPages {
    /// Begins with the first page. `users` are the names of the namespace's users.
    pub fn new(client: &Client, namespace: &str, users: &[String]) -> Self {
        let selector = format!(
            "{}={},!{}",
            labels::MANAGED_BY_LABEL,
            labels::MANAGED_BY,
            labels::CREDENTIALS_LABEL
        );
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            client: client.clone(),
            parameters: ListParams::default().labels(&selector).limit(PAGE),
            names: users.iter().map(|user| labels::secret_name(user)).collect(),
            next: NextPage::Listed,
        }
    }

    /// Reads the next page; nothing after the last one.
    pub async fn next(&mut self) -> Result<Option<Vec<Secret>>, ApiError> {
        if matches!(self.next, NextPage::Listed) {
            let url = self.secrets.resource_url();
            let page =
                request::bounded_list::<Secret>(&self.client, url, &self.parameters, PAGE_BYTES);
            if let Some(page) = page.await? {
                let token = page.metadata.continue_.filter(|token| !token.is_empty());
                if token.is_none() {
                    self.next = NextPage::None;
                }
                self.parameters.continue_token = token;
                return Ok(Some(page.items));
            }
            self.next = NextPage::ByName(0);
        }
        let NextPage::ByName(begin) = self.next else { return Ok(None) };
        let end = self.names.len().min(begin + CONCURRENT);
        if begin == end {
            return Ok(None);
        }
        self.next = NextPage::ByName(end);
        let reads = self.names[begin..end]
            .iter()
            .map(async |name| request::optional(request::within(self.secrets.get(name)).await));
        let found = try_join_all(reads).await?;
        Ok(Some(found.into_iter().flatten().collect()))
    }
}
