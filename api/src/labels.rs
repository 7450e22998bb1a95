//! Holds the names that several programs must spell alike: objects, labels, conditions and keys.

/// The API group of every custom resource here, and the prefix of every label and annotation.
pub const GROUP: &str = "twofactor.fountainai.io";
/// The version of the API group.
pub const VERSION: &str = "v1alpha1";
/// Group and version as manifests write them.
pub const API_VERSION: &str = "twofactor.fountainai.io/v1alpha1";

/// On a pod template: `"true"` requests the sidecar, `"false"` does not.
pub const INJECT_LABEL: &str = "twofactor.fountainai.io/inject";

/// On a pod: the namespace whose users it verifies. Defaults to the pod's own namespace.
pub const REALM_ANNOTATION: &str = "twofactor.fountainai.io/realm";
/// On a pod with the sidecar: the version of the operator that injected it.
pub const INJECTED_ANNOTATION: &str = "twofactor.fountainai.io/injected";
/// On a pod with the sidecar: the image of the sidecar's container when it was injected.
pub const INJECTED_IMAGE_ANNOTATION: &str = "twofactor.fountainai.io/injected-image";
/// The name of the sidecar's container.
pub const SIDECAR_CONTAINER: &str = "twofactor-sidecar";
/// The name of the sidecar's port with health and metrics.
pub const SIDECAR_ADMIN_PORT: &str = "twofactor-admin";
/// The volume with a realm's credentials, mounted into the sidecar's container only.
pub const CREDENTIALS_VOLUME: &str = "twofactor-credentials";
/// The path at which the volume is mounted.
pub const CREDENTIALS_PATH: &str = "/var/run/secrets/twofactor";

/// The program that manages an object (a recommended label of Kubernetes).
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY_LABEL`] on everything that the operator creates, and its field
/// manager.
pub const MANAGED_BY: &str = "twofactor-operator";

/// On a Secret: [`IMPORT_ALLOWED`] lets the users of its namespace import seeds from it.
pub const IMPORT_LABEL: &str = "twofactor.fountainai.io/import";
/// The value of [`IMPORT_LABEL`] that allows imports.
pub const IMPORT_ALLOWED: &str = "true";
/// On the Secret with a realm's credentials: the namespace of the realm.
pub const CREDENTIALS_LABEL: &str = "twofactor.fountainai.io/credentials";
/// On a user: a value other than the last one requests a new seed.
pub const ROTATE_ANNOTATION: &str = "twofactor.fountainai.io/rotate";
/// On a user: a value other than the last one requests that the user's failed attempts are
/// forgotten, which also ends blocks and enables a disabled user.
pub const RESET_FAILURES_ANNOTATION: &str = "twofactor.fountainai.io/reset-failures";
/// On a realm: a value other than the last one requests new keys for the realm and its services.
pub const ROTATE_KEYS_ANNOTATION: &str = "twofactor.fountainai.io/rotate-keys";
/// On a user's Secret: the value of [`ROTATE_ANNOTATION`] that its seed was created for.
pub const ROTATED_ANNOTATION: &str = "twofactor.fountainai.io/rotated";
/// On a user's Secret: the proof that an operator with this master key has written its seed for
/// this user.
pub const PROOF_ANNOTATION: &str = "twofactor.fountainai.io/proof";
/// On the operator's Lease: the mark with which the operator owns its data in Redis.
pub const OWNER_ANNOTATION: &str = "twofactor.fountainai.io/redis-owner";
/// On the operator's Lease: the lineage of another owner, which the operator replaces at once.
pub const REPLACE_OWNER_ANNOTATION: &str = "twofactor.fountainai.io/replace-redis-owner";

/// The name of the one realm of a namespace.
pub const REALM_NAME: &str = "default";

/// Condition: the user, or the realm, is as its object asks. It summarizes the others. A user that
/// is disabled is ready too.
pub const CONDITION_READY: &str = "Ready";
/// Condition: the user is enabled, neither disabled by the object nor by failures.
pub const CONDITION_ENABLED: &str = "Enabled";
/// Condition: the user's Secret exists and the operator manages it.
pub const CONDITION_SECRET_READY: &str = "SecretReady";
/// Condition: sidecars can read the user's current record.
pub const CONDITION_PUBLISHED: &str = "Published";
/// Condition of a realm: codes can be delivered.
pub const CONDITION_DELIVERY_READY: &str = "DeliveryReady";
/// Condition of a realm with its own providers: codes can be mailed.
pub const CONDITION_EMAIL_READY: &str = "EmailReady";
/// Condition of a realm with its own providers: codes can be sent as text messages.
pub const CONDITION_SMS_READY: &str = "SmsReady";
/// Condition of a realm with its own providers: codes can be sent to a webhook.
pub const CONDITION_WEBHOOK_READY: &str = "WebhookReady";
/// Condition of a realm that has tokens: there is a key to sign them.
pub const CONDITION_TOKENS_READY: &str = "TokensReady";
/// Condition of a realm: every allowed namespace has the credentials for services.
pub const CONDITION_CREDENTIALS_READY: &str = "CredentialsReady";
/// Condition of a realm: one generation of its keys is in use, and every sidecar can know it.
pub const CONDITION_KEYS_CURRENT: &str = "KeysCurrent";
/// Condition of a realm: Redis denies the services of each namespace access to the keys of others.
pub const CONDITION_ISOLATED: &str = "Isolated";
/// Condition of a realm: the names and the selector of allowed namespaces match existing
/// namespaces.
pub const CONDITION_NAMESPACES_MATCHED: &str = "NamespacesMatched";

/// Key of the user's Secret: the seed in base32.
pub const SECRET_KEY_SEED: &str = "secret";
/// Key of the user's Secret: the `otpauth://` URI that authenticator apps read.
pub const SECRET_KEY_OTPAUTH_URI: &str = "otpauth-uri";
/// Key of the user's Secret: the same URI as a QR code.
pub const SECRET_KEY_QR: &str = "qr.png";
/// Key of the user's Secret: the username.
pub const SECRET_KEY_USERNAME: &str = "username";

/// Key of a realm's credentials: the URL of Redis.
pub const CREDENTIALS_KEY_REDIS_URL: &str = "redis-url";
/// Key of a realm's credentials: the realm's first key, as `GENERATION:KEY`, for sidecars of
/// version 0.1. Absent once the realm has another one.
pub const CREDENTIALS_KEY_REALM_KEY: &str = "realm-key";
/// Key of a realm's credentials: the keys of the realm, of every generation that is in use.
pub const CREDENTIALS_KEY_REALM_KEYS: &str = "realm-keys";
/// Key of a realm's credentials: the installation's id.
pub const CREDENTIALS_KEY_INSTALLATION: &str = "installation";
/// Key of a realm's credentials: the realm's id.
pub const CREDENTIALS_KEY_REALM: &str = "realm";
/// Key of a realm's credentials: the namespace of the calling services.
pub const CREDENTIALS_KEY_CALLER: &str = "caller";
/// Key of a realm's credentials: the certificate authorities of Redis in PEM. Absent if the
/// system's are used.
pub const CREDENTIALS_KEY_REDIS_CA: &str = "redis-ca";
/// Key of a realm's credentials: the client certificate for Redis in PEM. Absent if there is none.
pub const CREDENTIALS_KEY_REDIS_CLIENT_CERTIFICATE: &str = "redis-client-certificate";
/// Key of a realm's credentials: the private key of that certificate.
pub const CREDENTIALS_KEY_REDIS_CLIENT_KEY: &str = "redis-client-key";
/// Key of a realm's credentials: who loads the scripts of sidecars into Redis. Absent if an
/// operator of version 0.1 has written the credentials.
pub const CREDENTIALS_KEY_SCRIPTS: &str = "scripts";
/// Value of [`CREDENTIALS_KEY_SCRIPTS`]: the operator.
pub const SCRIPTS_OF_OPERATOR: &str = "operator";

/// Suffix of the name of a user's Secret, after the user's name.
pub const SECRET_SUFFIX: &str = "-totp";

/// Returns the name of the Secret of the user with this `metadata.name`.
#[must_use]
pub fn secret_name(user: &str) -> String {
    format!("{user}{SECRET_SUFFIX}")
}

/// Returns the name of the Secret with the credentials of the realm of this namespace.
#[must_use]
pub fn credentials_name(namespace: &str) -> String {
    format!("twofactor-{namespace}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_built_from_the_group() {
        assert_eq!(API_VERSION, format!("{GROUP}/{VERSION}"));
        assert!(INJECT_LABEL.starts_with(&format!("{GROUP}/")));
    }

    #[test]
    fn a_users_secret_is_named_after_the_user() {
        assert_eq!(secret_name("alice"), "alice-totp");
    }
}
