//! Sends codes as email.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use data_encoding::BASE32_NOPAD;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::{Address, Message};
use rand::rngs::SysRng;
use rand_core::{CryptoRng, UnwrapErr};
use twofactor_core::host;
use twofactor_core::provider::{Sender, SmtpSecurity, SmtpSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::{DeliveryMethod, EmailAddress, UserDefinition};

use super::error::DeliveryError;
use super::smtp::{Mail, MailServer};
use super::{Channel, Order, Sending};

/// The channel for email.
#[derive(Debug, Default)]
pub(super) struct Email {
    current: ArcSwapOption<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    settings: SmtpSettings,
    server: MailServer,
    from: Mailbox,
}

impl Channel for Email {
    fn method(&self) -> DeliveryMethod {
        DeliveryMethod::Email
    }

    fn can_reach(&self, user: &UserDefinition, realm: &RealmRecord) -> bool {
        // An address that no mail server takes is the user's fault and not the provider's.
        let deliverable = |email: &EmailAddress| email.check_deliverable().is_ok();
        user.email.as_ref().is_some_and(deliverable) && realm.providers.smtp.is_some()
    }

    fn send<'a>(&'a self, order: &'a Order<'a>) -> Sending<'a> {
        Box::pin(async move {
            let (Some(address), Some(settings)) = (&order.user.email, &order.realm.providers.smtp)
            else {
                return Err(DeliveryError::Misconfigured("no address, or no mail server".into()));
            };
            let prepared = self.prepared(settings)?;
            let to = ascii_domain(address)?;
            let id = message_id(&prepared.from.email, &mut UnwrapErr(SysRng));
            let mail = mail(prepared.from.clone(), to.clone(), id, order)?;
            let (from, to) = (prepared.from.email.as_ref(), to.as_ref());
            prepared.server.send(&Mail { from, to, text: &mail.formatted() }).await
        })
    }
}

impl Email {
    fn prepared(&self, settings: &SmtpSettings) -> Result<Arc<Prepared>, DeliveryError> {
        if let Some(current) = self.current.load_full()
            && current.settings == *settings
        {
            return Ok(current);
        }
        if settings.security == SmtpSecurity::Plain {
            tracing::warn!(
                "codes are sent to the mail server unencrypted, because SMTP_SECURITY is plain"
            );
        }
        let from = mailbox(&settings.from)?;
        let ehlo_name =
            settings.ehlo_name.clone().unwrap_or_else(|| from.email.domain().to_owned());
        let server = MailServer::new(settings, ehlo_name)?;
        let prepared = Arc::new(Prepared { settings: settings.clone(), server, from });
        self.current.store(Some(prepared.clone()));
        Ok(prepared)
    }
}

/// Returns the sender. lettre writes quotes around a name that needs them.
fn mailbox(sender: &Sender) -> Result<Mailbox, DeliveryError> {
    Ok(Mailbox::new(sender.name.clone(), ascii_domain(&sender.address)?))
}

/// Returns an address with its domain in ASCII (RFC 5890), which every mail server understands.
fn ascii_domain(address: &EmailAddress) -> Result<Address, DeliveryError> {
    let address = address.as_str();
    let parts = address.rsplit_once('@');
    let ascii = parts.and_then(|(mailbox, domain)| Some((mailbox, host::to_ascii(domain)?)));
    ascii.and_then(|(mailbox, domain)| Address::new(mailbox, domain).ok()).ok_or_else(|| {
        DeliveryError::Refused("no mail server has the domain of the address".to_owned())
    })
}

/// Returns a new Message-ID in the sender's domain. Large providers refuse mails without one.
fn message_id(from: &Address, random: &mut impl CryptoRng) -> String {
    let mut bytes = [0; 20];
    random.fill_bytes(&mut bytes);
    format!("<{}@{}>", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase(), from.domain())
}

/// Builds the mail. Every value that is filled in is part of one line, so none can become a header.
fn mail(
    from: Mailbox,
    to: Address,
    id: String,
    order: &Order<'_>,
) -> Result<Message, DeliveryError> {
    let wrong = |_| DeliveryError::Misconfigured("the message".into());
    let (templates, values) = (order.texts(), &order.values);
    // Programs that answer mail automatically do not answer such mail (RFC 3834).
    let automatic = HeaderValue::new(
        HeaderName::new_from_ascii_str("Auto-Submitted"),
        "auto-generated".to_owned(),
    );
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(order.message.now.seconds());
    let builder = Message::builder()
        .from(from)
        .to(Mailbox::new(None, to))
        .subject(templates.subject(values))
        .date(now)
        .message_id(Some(id))
        .raw_header(automatic);
    let text = templates.text(values);
    match templates.html(values) {
        None => builder.singlepart(SinglePart::plain(text)).map_err(wrong),
        Some(html) => {
            builder.multipart(MultiPart::alternative_plain_html(text, html)).map_err(wrong)
        }
    }
}
