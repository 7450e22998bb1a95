//! Sends codes as email.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::{Address, Message};
use twofactor_core::provider::{SmtpSecurity, SmtpSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::{DeliveryMethod, EmailAddress, UserDefinition};

use super::error::DeliveryError;
use super::smtp::MailServer;
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
                return Err(DeliveryError::Misconfigured("no address, or no mail server"));
            };
            let prepared = self.prepared(settings)?;
            let mail = mail(prepared.from.clone(), address, order)?;
            prepared.server.send(mail.envelope(), &mail.formatted()).await
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
        let from = settings
            .from
            .parse()
            .map_err(|_| DeliveryError::Misconfigured("SMTP_FROM_EMAIL is not an address"))?;
        let server = MailServer::new(settings)?;
        let prepared = Arc::new(Prepared { settings: settings.clone(), server, from });
        self.current.store(Some(prepared.clone()));
        Ok(prepared)
    }
}

/// Builds the mail. Every value that is filled in is part of one line, so none can become a header.
fn mail(from: Mailbox, to: &EmailAddress, order: &Order<'_>) -> Result<Message, DeliveryError> {
    let wrong = |_| DeliveryError::Misconfigured("the message");
    let to: Address = to
        .as_str()
        .parse()
        .map_err(|_| DeliveryError::Misconfigured("the user's email address"))?;
    let (templates, values) = (&order.realm.message, &order.values);
    // Programs that answer mail automatically do not answer such mail (RFC 3834).
    let automatic = HeaderValue::new(
        HeaderName::new_from_ascii_str("Auto-Submitted"),
        "auto-generated".to_owned(),
    );
    let builder = Message::builder()
        .from(from)
        .to(Mailbox::new(None, to))
        .subject(templates.subject(values))
        .raw_header(automatic);
    let text = templates.text(values);
    match templates.html(values) {
        None => builder.header(ContentType::TEXT_PLAIN).body(text).map_err(wrong),
        Some(html) => {
            builder.multipart(MultiPart::alternative_plain_html(text, html)).map_err(wrong)
        }
    }
}
