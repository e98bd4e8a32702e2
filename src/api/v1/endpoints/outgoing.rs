//! The members of an endpoint's request: `signature`, `request` and `auth`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::settings::{SIGNATURES, Words, parse_word, word_of};
use crate::api::http::body::object;
use crate::api::http::problem::{Errors, pointer};
use crate::api::http::unique::members;
use crate::api::text::Word;
use crate::domain::{
    ClientAuthentication, CustomSignature, Endpoint, EndpointAuth, OAuthClient, RequestMethod, RequestShape,
    Sealed, SignatureAlgorithm, SignatureEncoding, SignaturePreset, SignatureScheme,
};
use crate::limits;
use crate::rules::signature::{check_content, check_value};
use crate::service::requests::check_template;
use crate::service::types::is_same_origin;

const METHODS: Words<RequestMethod> = &[
    ("POST", RequestMethod::Post),
    ("PUT", RequestMethod::Put),
    ("PATCH", RequestMethod::Patch),
    ("GET", RequestMethod::Get),
];
const CLIENT_AUTHENTICATIONS: Words<ClientAuthentication> =
    &[("basic", ClientAuthentication::Basic), ("post", ClientAuthentication::Post)];
const ALGORITHMS: Words<SignatureAlgorithm> = &[
    ("sha256", SignatureAlgorithm::Sha256),
    ("sha512", SignatureAlgorithm::Sha512),
    ("sha1", SignatureAlgorithm::Sha1),
];
const ENCODINGS: Words<SignatureEncoding> =
    &[("hex", SignatureEncoding::Hex), ("base64", SignatureEncoding::Base64)];
/// Longest separator of signatures, in bytes.
const SEPARATOR_BYTES_MAX: usize = 8;

/// A preset, or a list of presets and custom signatures.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum SignatureMember {
    Preset(#[schemars(with = "Word<SignaturePreset>")] String),
    Schemes(#[schemars(length(min = 1, max = 5))] Vec<SignatureItem>),
}

#[derive(JsonSchema)]
#[serde(untagged)]
pub enum SignatureItem {
    Preset(#[schemars(with = "Word<SignaturePreset>")] String),
    Custom(CustomSignatureInput),
}

/// An HMAC in a header of your choice. The key is the text of the secret.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CustomSignatureInput {
    /// The name of the header.
    #[schemars(length(min = 1, max = 255))]
    header: String,
    /// Default: `sha256`.
    #[schemars(extend("enum" = ["sha256", "sha512", "sha1", null]))]
    algorithm: Option<String>,
    /// Default: `hex`.
    #[schemars(extend("enum" = ["hex", "base64", null]))]
    encoding: Option<String>,
    /// The signed content, with `{body}` once, and any `{id}` and `{timestamp}`. Default: `{body}`.
    #[schemars(length(min = 1, max = 256))]
    template: Option<String>,
    /// The value of the header, with `{signature}` once, and any `{id}` and `{timestamp}`. Default:
    /// `{signature}`.
    #[schemars(length(min = 1, max = 256))]
    value: Option<String>,
    /// Between the values of several secrets during a rotation. Default: only the current secret
    /// signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    separator: Option<String>,
}

/// The signature schemes of the member `signature`.
pub(super) fn parse_signatures(
    given: Option<&Value>,
    check_header: &impl Fn(&str, &str) -> Result<(), String>,
    errors: &mut Errors,
) -> Vec<SignatureScheme> {
    let items = match given {
        None => return SignatureScheme::standard(),
        Some(Value::String(word)) => {
            return vec![SignatureScheme::Preset(parse_word(errors, "/signature", Some(word), SIGNATURES))];
        }
        Some(Value::Array(items)) => items,
        Some(_) => {
            errors.push("/signature", "must be a word, or a list of words and objects");
            return Vec::new();
        }
    };
    if items.is_empty() || items.len() > limits::SIGNATURES_MAX {
        errors.push("/signature", format!("1 to {} entries", limits::SIGNATURES_MAX));
    }
    let mut schemes = Vec::new();
    let mut names = BTreeSet::new();
    for (index, item) in items.iter().take(limits::SIGNATURES_MAX).enumerate() {
        let location = format!("/signature/{index}");
        let Some(scheme) = parse_scheme(item, &location, check_header, errors) else { continue };
        if scheme.headers().into_iter().any(|name| !names.insert(name)) {
            errors.push(location, "its header is already in the list");
        }
        schemes.push(scheme);
    }
    schemes
}

fn parse_scheme(
    item: &Value,
    location: &str,
    check_header: &impl Fn(&str, &str) -> Result<(), String>,
    errors: &mut Errors,
) -> Option<SignatureScheme> {
    if let Value::String(word) = item {
        return Some(SignatureScheme::Preset(parse_word(errors, location, Some(word), SIGNATURES)));
    }
    let parsed = serde_json::from_value::<CustomSignatureInput>(item.clone());
    let input = errors.check(location, parsed)?;
    errors.check(&pointer(location, "header"), check_header(&input.header, ""));
    let template = input.template.as_deref().unwrap_or("{body}");
    errors.check(&pointer(location, "template"), check_content(template));
    let value = input.value.as_deref().unwrap_or("{signature}");
    errors.check(&pointer(location, "value"), check_value(value));
    if let Some(separator) = &input.separator {
        let is_legal = separator.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if separator.is_empty() || separator.len() > SEPARATOR_BYTES_MAX || !is_legal {
            let detail = format!("must be 1 to {SEPARATOR_BYTES_MAX} printable ASCII characters");
            errors.push(pointer(location, "separator"), detail);
        }
    }
    let (algorithm, encoding) = (input.algorithm.as_deref(), input.encoding.as_deref());
    Some(SignatureScheme::Custom(CustomSignature {
        algorithm: parse_word(errors, &pointer(location, "algorithm"), algorithm, ALGORITHMS),
        encoding: parse_word(errors, &pointer(location, "encoding"), encoding, ENCODINGS),
        template: template.into(),
        value: value.into(),
        separator: input.separator.map(Into::into),
        header: input.header.into(),
    }))
}

/// A word for a single preset, otherwise a list.
pub(super) fn signature_member(schemes: &[SignatureScheme]) -> Value {
    let item = |scheme: &SignatureScheme| match scheme {
        SignatureScheme::Preset(preset) => json!(word_of(*preset, SIGNATURES)),
        SignatureScheme::Custom(custom) => json!(CustomSignatureInput {
            header: custom.header.to_string(),
            algorithm: Some(custom.algorithm.as_str().to_owned()),
            encoding: Some(custom.encoding.as_str().to_owned()),
            template: Some(custom.template.to_string()),
            value: Some(custom.value.to_string()),
            separator: custom.separator.as_ref().map(ToString::to_string),
        }),
    };
    match schemes {
        [only @ SignatureScheme::Preset(_)] => item(only),
        several => several.iter().map(item).collect(),
    }
}

/// Method and body of requests.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMembers {
    /// `POST`, `PUT`, `PATCH`, or `GET` without a body. Default: `POST`.
    #[schemars(extend("enum" = ["POST", "PUT", "PATCH", "GET", null]))]
    method: Option<String>,
    /// Default: the media type of `format`, or `application/json` with `body`.
    #[schemars(length(min = 1, max = 255))]
    content_type: Option<String>,
    /// A template of the body, at most 16 KiB. Default: the body in the endpoint's `format`.
    #[schemars(length(min = 1, max = 16_384))]
    body: Option<String>,
}

impl RequestMembers {
    pub(super) fn check(&self, errors: &mut Errors) -> RequestShape {
        let method = parse_word(errors, "/request/method", self.method.as_deref(), METHODS);
        if method == RequestMethod::Get {
            for (name, member) in [("contentType", &self.content_type), ("body", &self.body)] {
                if member.is_some() {
                    errors.push(pointer("/request", name), "a GET request has no body");
                }
            }
        }
        let content_type = self.content_type.as_deref();
        if let Some(text) = content_type
            && errors.check("/request/contentType", check_content_type(text)).is_none()
        {
            return RequestShape::default();
        }
        if let Some(source) = &self.body {
            let checked = check_template(source, content_type);
            errors.check("/request/body", checked);
        }
        RequestShape {
            method,
            content_type: content_type.map(Into::into),
            body: self.body.as_deref().map(Into::into),
        }
    }

    pub(super) fn new(request: &RequestShape) -> Option<Self> {
        (*request != RequestShape::default()).then(|| Self {
            method: Some(request.method.as_str().to_owned()),
            content_type: request.content_type.as_ref().map(ToString::to_string),
            body: request.body.as_ref().map(ToString::to_string),
        })
    }
}

/// `type/subtype` with parameters (RFC 9110, section 8.3.1).
fn check_content_type(text: &str) -> Result<(), String> {
    let is_token = |part: &str| {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !part.is_empty() && part.bytes().all(is_legal)
    };
    let is_quoted = |part: &str| {
        let inner = part.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        inner.is_some_and(|inner| {
            inner.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\')
        })
    };
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().and_then(|media| media.split_once('/'));
    // Sent unchanged, so spaces around it and line ends are refused.
    let is_legal = text.len() <= limits::CONTENT_TYPE_BYTES_MAX
        && text == text.trim()
        && text.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
        && media.is_some_and(|(one, other)| is_token(one) && is_token(other))
        && parts
            .map(|part| part.split_once('=').unwrap_or((part, "")))
            .all(|(name, value)| is_token(name) && (is_token(value) || is_quoted(value)));
    if is_legal {
        Ok(())
    } else {
        Err("must be a media type such as application/json; charset=utf-8".to_owned())
    }
}

/// Authorization of requests: exactly one of the two.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthInput {
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub(super) basic: Option<BasicAuthInput>,
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub(super) oauth2: Option<OAuthInput>,
}

/// HTTP Basic.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicAuthInput {
    /// Without `:`.
    #[schemars(length(max = 1024))]
    username: String,
    /// Write-only. Required, except in a change that keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), extend("writeOnly" = true))]
    password: Option<String>,
}

impl fmt::Debug for BasicAuthInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BasicAuthInput(..)")
    }
}

/// OAuth 2.0 client credentials.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OAuthInput {
    /// The same rules as for `url`.
    #[schemars(length(min = 1, max = 2048))]
    pub(super) token_url: String,
    #[schemars(length(min = 1, max = 1024))]
    client_id: String,
    /// Write-only. Required, except in a change that keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), extend("writeOnly" = true))]
    client_secret: Option<String>,
    /// Sent as `scope`.
    #[schemars(length(min = 1, max = 1024))]
    scope: Option<String>,
    /// Sent as `audience`.
    #[schemars(length(min = 1, max = 1024))]
    audience: Option<String>,
    /// Sent as `resource` (RFC 8707).
    #[schemars(length(min = 1, max = 1024))]
    resource: Option<String>,
    /// How the client authenticates: by HTTP Basic, or with `client_id` and `client_secret` in the
    /// request body. Default: `basic`.
    #[schemars(extend("enum" = ["basic", "post", null]))]
    client_authentication: Option<String>,
    /// Further parameters of the token request, at most 16 with 4 KiB in all. Names have 1 to 64
    /// characters of `[A-Za-z0-9_.-]`. Not `grant_type`, `scope`, `resource`, `client_id`,
    /// `client_secret` and `client_assertion...`; not `audience` beside the member of this name.
    #[serde(default, deserialize_with = "members", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 16))]
    parameters: Option<BTreeMap<String, String>>,
}

impl fmt::Debug for OAuthInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OAuthInput(..)")
    }
}

/// Validated authorization. Without a secret in the request, its secret is empty.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthSettings {
    pub auth: EndpointAuth,
    pub has_secret: bool,
    /// The member with the secret.
    pub secret_at: &'static str,
}

fn plain(secret: Option<&String>) -> Sealed {
    Sealed::Plain(secret.map(|text| text.as_bytes().into()).unwrap_or_default())
}

pub(in crate::api::v1) fn check_auth_text(text: &str, bytes_min: usize, errors: &mut Errors, location: &str) {
    if text.len() < bytes_min
        || text.len() > limits::AUTH_TEXT_BYTES_MAX
        || text.chars().any(char::is_control)
    {
        let detail = format!(
            "must be {bytes_min} to {} bytes without control characters",
            limits::AUTH_TEXT_BYTES_MAX
        );
        errors.push(location, detail);
    }
}

fn pair(name: &str, value: &str) -> (Box<str>, Box<str>) {
    (name.into(), value.into())
}

/// Parameters of a token request that Balto sets itself. Some servers ignore the case of names.
const OWN_PARAMETERS: [&str; 5] = ["grant_type", "client_id", "client_secret", "scope", "resource"];
/// Start of the names of another client authentication (RFC 7521).
const ASSERTION: &str = "client_assertion";

fn check_parameters<'a>(
    parameters: impl Iterator<Item = (&'a String, &'a String)> + Clone,
    has_audience: bool,
    errors: &mut Errors,
) {
    const AT: &str = "/auth/oauth2/parameters";
    if parameters.clone().count() > limits::TOKEN_PARAMETERS_MAX {
        errors.push(AT, format!("at most {} parameters", limits::TOKEN_PARAMETERS_MAX));
    }
    let bytes: usize = parameters.clone().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > limits::TOKEN_PARAMETERS_BYTES_MAX {
        errors.push(AT, format!("at most {} bytes in all", limits::TOKEN_PARAMETERS_BYTES_MAX));
    }
    for (name, value) in parameters.take(limits::TOKEN_PARAMETERS_MAX) {
        let location = pointer(AT, name);
        let is_character = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let lower = name.to_ascii_lowercase();
        if !(1..=limits::TOKEN_PARAMETER_NAME_BYTES_MAX).contains(&name.len())
            || !name.bytes().all(is_character)
        {
            let most = limits::TOKEN_PARAMETER_NAME_BYTES_MAX;
            errors.push(&location, format!("a name has 1 to {most} characters of `[A-Za-z0-9_.-]`"));
        } else if OWN_PARAMETERS.contains(&&*lower) {
            errors.push(&location, "Balto sets this parameter itself");
        } else if lower.starts_with(ASSERTION) {
            errors.push(&location, "client assertions are not supported");
        } else if has_audience && lower == "audience" {
            errors.push(&location, "is also set by the member `audience`");
        }
        check_auth_text(value, 1, errors, &location);
    }
}

impl AuthInput {
    /// The caller checks the token URL.
    pub(super) fn check(&self, errors: &mut Errors) -> Option<AuthSettings> {
        match (&self.basic, &self.oauth2) {
            (Some(basic), None) => {
                check_auth_text(&basic.username, 0, errors, "/auth/basic/username");
                if basic.username.contains(':') {
                    errors.push("/auth/basic/username", "must not contain `:`");
                }
                let password = basic.password.as_ref();
                check_auth_text(password.map_or("", |text| text), 0, errors, "/auth/basic/password");
                let username = basic.username.as_str().into();
                let auth = EndpointAuth::Basic { username, password: plain(password) };
                Some(AuthSettings { auth, has_secret: password.is_some(), secret_at: "/auth/basic/password" })
            }
            (None, Some(client)) => {
                if client.token_url.len() > limits::URL_BYTES_MAX {
                    errors.push(TOKEN_URL, format!("at most {} bytes", limits::URL_BYTES_MAX));
                }
                for (name, text) in [
                    ("clientId", Some(&client.client_id)),
                    ("clientSecret", client.client_secret.as_ref()),
                    ("scope", client.scope.as_ref()),
                    ("audience", client.audience.as_ref()),
                    ("resource", client.resource.as_ref()),
                ] {
                    let location = pointer("/auth/oauth2", name);
                    text.into_iter().for_each(|text| check_auth_text(text, 1, errors, &location));
                }
                let parameters = client.parameters.as_ref();
                check_parameters(parameters.into_iter().flatten(), client.audience.is_some(), errors);
                let parameters = parameters.into_iter().flatten();
                let auth = EndpointAuth::OAuth2(OAuthClient {
                    token_url: client.token_url.as_str().into(),
                    id: client.client_id.as_str().into(),
                    secret: plain(client.client_secret.as_ref()),
                    scope: client.scope.as_deref().map(Into::into),
                    audience: client.audience.as_deref().map(Into::into),
                    resource: client.resource.as_deref().map(Into::into),
                    authentication: parse_word(
                        errors,
                        "/auth/oauth2/clientAuthentication",
                        client.client_authentication.as_deref(),
                        CLIENT_AUTHENTICATIONS,
                    ),
                    parameters: parameters.map(|(name, value)| pair(name, value)).collect(),
                });
                let has_secret = client.client_secret.is_some();
                Some(AuthSettings { auth, has_secret, secret_at: "/auth/oauth2/clientSecret" })
            }
            (Some(_), Some(_)) | (None, None) => {
                errors.push("/auth", "needs either `basic` or `oauth2`");
                None
            }
        }
    }

    pub(super) fn new(auth: &EndpointAuth) -> Self {
        match auth {
            EndpointAuth::Basic { username, .. } => {
                let basic = BasicAuthInput { username: username.to_string(), password: None };
                Self { basic: Some(basic), oauth2: None }
            }
            EndpointAuth::OAuth2(client) => Self {
                basic: None,
                oauth2: Some(OAuthInput {
                    token_url: client.token_url.to_string(),
                    client_id: client.id.to_string(),
                    client_secret: None,
                    scope: client.scope.as_ref().map(ToString::to_string),
                    audience: client.audience.as_ref().map(ToString::to_string),
                    resource: client.resource.as_ref().map(ToString::to_string),
                    client_authentication: Some(client.authentication.as_str().to_owned()),
                    parameters: (!client.parameters.is_empty()).then(|| {
                        let text =
                            |(name, value): &(Box<str>, Box<str>)| (name.to_string(), value.to_string());
                        client.parameters.iter().map(text).collect()
                    }),
                }),
            },
        }
    }
}

pub(super) const TOKEN_URL: &str = "/auth/oauth2/tokenUrl";

/// The authorization after a change; `given` is `None` if the change does not name it. A secret
/// that the change omits is kept, but a client secret not at another token server.
pub(super) fn merge_auth(
    kept: Option<&EndpointAuth>,
    given: Option<Option<AuthSettings>>,
    errors: &mut Errors,
) -> Option<EndpointAuth> {
    let Some(given) = given else { return kept.cloned() };
    let AuthSettings { mut auth, has_secret, secret_at } = given?;
    if has_secret {
        return Some(auth);
    }
    let kept = match (&auth, kept) {
        (EndpointAuth::Basic { .. }, Some(kept @ EndpointAuth::Basic { .. })) => Some(kept),
        (EndpointAuth::OAuth2(client), Some(kept @ EndpointAuth::OAuth2(old)))
            if is_same_origin(&client.token_url, &old.token_url) =>
        {
            Some(kept)
        }
        _ => None,
    };
    match kept {
        Some(kept) => *auth.secret_mut() = kept.secret().clone(),
        None => errors.push(secret_at, "is required"),
    }
    Some(auth)
}

/// Checks that no other header of the endpoint has the name of a signature or of the authorization.
pub(super) fn check_header_names(endpoint: &Endpoint, errors: &mut Errors) {
    let custom = endpoint.headers.iter().map(|(name, _)| name);
    let names: BTreeSet<String> = custom
        .chain(endpoint.sensitive_headers.iter().map(|(name, _)| name))
        .map(|name| name.to_ascii_lowercase())
        .collect();
    let signatures: BTreeSet<String> =
        endpoint.signatures.iter().flat_map(SignatureScheme::headers).collect();
    if let Some(name) = signatures.intersection(&names).next() {
        errors.push("/signature", format!("the header `{name}` is also in the endpoint's headers"));
    }
    let authorization = "authorization";
    if endpoint.auth.is_some() && (names.contains(authorization) || signatures.contains(authorization)) {
        errors.push("/auth", "the header `Authorization` is also set by another member");
    }
}
