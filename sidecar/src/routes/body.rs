//! Reads and validates requests. A refusal names the field and never repeats its value, which may
//! be a code.

use std::fmt::{self, Display};
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, header};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use twofactor_core::code::Code;
use twofactor_core::context::Context;
use twofactor_core::token::Audience;
use twofactor_core::user::Username;

use crate::audit::Origin;
use crate::otp::requests::{CodeRequest, VerifyRequest};
use crate::refusal::Refusal;

/// Maximum size of a body in bytes: more than a username of 253 and a context of 140 characters
/// take in any escaping.
const LARGEST_BODY: usize = 8 * 1024;
/// Timeout for the whole body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The members of a JSON object that were not taken yet.
#[derive(Debug)]
pub(super) struct Fields {
    members: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Reads a body that must be a JSON object.
    pub(super) fn parse(headers: &HeaderMap, bytes: &[u8]) -> Result<Self, Refusal> {
        if !is_json(headers) {
            return Err(malformed("Content-Type: must be application/json"));
        }
        // A byte order mark, which some programs write, may be ignored (RFC 8259 §8.1).
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        match serde_json::from_slice(bytes) {
            Ok(Members { members, repeated: None }) => Ok(Self { members, known: Vec::new() }),
            Ok(Members { repeated: Some(name), .. }) => Err(malformed(&format!(
                "{:?}: stands in the body more than once",
                shortened(&name)
            ))),
            Err(error) if error.is_data() => Err(malformed("body: must be a JSON object")),
            Err(error) => Err(malformed(&format!(
                "body: is not valid JSON (line {}, column {})",
                error.line(),
                error.column()
            ))),
        }
    }

    fn text(&mut self, name: &'static str) -> Result<String, Refusal> {
        self.known.push(name);
        match self.members.remove(name) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(malformed(&format!("{name}: must be a string"))),
            None => Err(malformed(&format!("{name}: is required"))),
        }
    }

    /// Takes a member that may be absent.
    fn optional<T, E: Display>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(String) -> Result<T, E>,
    ) -> Result<Option<T>, Refusal> {
        // Null counts as absent, because many clients write fields that they do not set like this.
        if self.members.get(name).is_none_or(Value::is_null) {
            self.members.remove(name);
            self.known.push(name);
            return Ok(None);
        }
        read(self.text(name)?).map(Some).map_err(|error| malformed(&format!("{name}: {error}")))
    }

    /// Takes the member `username`.
    pub(super) fn username(&mut self) -> Result<Username, Refusal> {
        let text = self.text("username")?;
        username(text)
    }

    /// Takes the member `otp_code`.
    pub(super) fn code(&mut self) -> Result<Code, Refusal> {
        let text = self.text("otp_code")?;
        Code::parse(&text).map_err(|error| malformed(&format!("otp_code: {error}")))
    }

    /// Refuses members that are left, because a misspelt one would otherwise be ignored.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(name) => Err(malformed(&format!(
                "{:?}: is not a known field; known are {}",
                shortened(name),
                self.known.join(", ")
            ))),
        }
    }
}

/// A JSON object whose members may be repeated. A program that reads the first of them would
/// otherwise understand another request than this one, which would read the last.
struct Members {
    members: Map<String, Value>,
    /// The first name that is repeated.
    repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let (mut members, mut repeated) = (Map::new(), None);
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if members.contains_key(&name) {
                repeated.get_or_insert(name);
            } else {
                members.insert(name, value);
            }
        }
        Ok(Members { members, repeated })
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(50).collect()
}

pub(super) fn verify_request(
    headers: &HeaderMap,
    bytes: &[u8],
    origin: Origin,
) -> Result<VerifyRequest, Refusal> {
    let mut fields = Fields::parse(headers, bytes)?;
    let request = VerifyRequest {
        username: fields.username()?,
        code: fields.code()?,
        context: fields.optional("context", Context::try_from)?,
        audience: fields.optional("audience", Audience::try_from)?,
        origin,
    };
    fields.finish()?;
    Ok(request)
}

/// Reads a generate request. The username is in the query, in a JSON body, or the same in both; the
/// context only in the body, because query strings end up in access logs.
pub(super) fn generate_request(
    query: &str,
    headers: &HeaderMap,
    bytes: &[u8],
    origin: Origin,
) -> Result<CodeRequest, Refusal> {
    let mut in_query =
        form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "username");
    let from_query = in_query.next().map(|(_, value)| username(value.into_owned())).transpose()?;
    if in_query.next().is_some() {
        return Err(malformed("username: stands in the query more than once"));
    }
    let (mut from_body, mut context) = (None, None);
    // Clients without anything to say send null.
    let says_nothing = bytes.is_empty() || is_json(headers) && bytes.trim_ascii() == b"null";
    if !says_nothing {
        let mut fields = Fields::parse(headers, bytes)?;
        from_body = fields.optional("username", Username::try_from)?;
        context = fields.optional("context", Context::try_from)?;
        fields.finish()?;
    }
    match (from_query, from_body) {
        (Some(query), Some(body)) if query != body => {
            Err(malformed("username: differs between the query and the body"))
        }
        (Some(username), _) | (None, Some(username)) => {
            Ok(CodeRequest { username, context, origin })
        }
        (None, None) => Err(malformed("username: is required, in the query or in a JSON body")),
    }
}

fn username(text: String) -> Result<Username, Refusal> {
    Username::try_from(text).map_err(|error| malformed(&format!("username: {error}")))
}

fn malformed(what: &str) -> Refusal {
    Refusal::Malformed(what.to_owned())
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Reads a body, with limits of size and time.
pub(super) async fn read(
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<BytesMut, Refusal> {
    let collect = async {
        let mut body = pin!(body);
        let mut bytes = BytesMut::new();
        while let Some(part) = body.next().await {
            let part = part.map_err(|_| malformed("body: broke off"))?;
            if bytes.len() + part.remaining() > LARGEST_BODY {
                return Err(Refusal::TooLarge(LARGEST_BODY));
            }
            bytes.put(part);
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_TIMEOUT, collect).await.unwrap_or(Err(Refusal::TooSlow))
}
