//! The request of an endpoint's deliveries: signatures, method, body template, authorization.

use super::closed_list::closed_list;
use super::{Sealed, SignaturePreset};

/// A signature of an endpoint's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignatureScheme {
    Preset(SignaturePreset),
    Custom(CustomSignature),
}

impl SignatureScheme {
    /// The scheme of an endpoint without a choice.
    #[must_use]
    pub fn standard() -> Vec<Self> {
        vec![Self::Preset(SignaturePreset::Standard)]
    }

    /// The names of its headers, in lower case.
    #[must_use]
    pub fn headers(&self) -> Vec<String> {
        let names: &[&str] = match self {
            Self::Preset(SignaturePreset::Standard) => &["webhook-signature"],
            Self::Preset(SignaturePreset::Stripe) => &["stripe-signature"],
            Self::Preset(SignaturePreset::Github) => &["x-hub-signature-256"],
            Self::Preset(SignaturePreset::Svix) => &["svix-id", "svix-timestamp", "svix-signature"],
            Self::Custom(custom) => return vec![custom.header.to_ascii_lowercase()],
        };
        names.iter().map(|name| (*name).to_owned()).collect()
    }
}

/// An HMAC in a header that the endpoint describes. `{id}`, `{timestamp}`, `{body}` and
/// `{signature}` are placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomSignature {
    pub header: Box<str>,
    pub algorithm: SignatureAlgorithm,
    pub encoding: SignatureEncoding,
    /// The signed content, with one `{body}`.
    pub template: Box<str>,
    /// The header's value, with one `{signature}`.
    pub value: Box<str>,
    /// Between the values of several live secrets. Without it, only the current secret signs.
    pub separator: Option<Box<str>>,
}

closed_list! {
    /// Hash function of an HMAC.
    #[derive(Default)]
    pub enum SignatureAlgorithm {
        #[default]
        Sha256 = 1 => "sha256",
        Sha512 = 2 => "sha512",
        /// For receivers that know no other.
        Sha1 = 3 => "sha1",
    }
}

closed_list! {
    /// Text form of an HMAC.
    #[derive(Default)]
    pub enum SignatureEncoding {
        #[default]
        Hex = 1 => "hex",
        /// Standard base64, padded.
        Base64 = 2 => "base64",
    }
}

closed_list! {
    /// Method of an endpoint's requests.
    #[derive(Default)]
    pub enum RequestMethod {
        #[default]
        Post = 1 => "POST",
        Put = 2 => "PUT",
        Patch = 3 => "PATCH",
        /// Without a body.
        Get = 4 => "GET",
    }
}

/// Method and body of an endpoint's requests. The default sends the endpoint's format by `POST`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestShape {
    pub method: RequestMethod,
    /// `None`: the media type of the format; `application/json` for a template.
    pub content_type: Option<Box<str>>,
    /// Source of the template that renders the body.
    pub body: Option<Box<str>>,
}

/// Authorization of an endpoint's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointAuth {
    /// HTTP Basic (RFC 7617).
    Basic { username: Box<str>, password: Sealed },
    /// OAuth 2.0 client credentials (RFC 6749, section 4.4).
    OAuth2(OAuthClient),
}

impl EndpointAuth {
    /// The hidden part.
    #[must_use]
    pub fn secret(&self) -> &Sealed {
        match self {
            Self::Basic { password, .. } => password,
            Self::OAuth2(client) => &client.secret,
        }
    }

    pub fn secret_mut(&mut self) -> &mut Sealed {
        match self {
            Self::Basic { password, .. } => password,
            Self::OAuth2(client) => &mut client.secret,
        }
    }
}

closed_list! {
    /// How a client authenticates at a token server (RFC 6749, section 2.3.1).
    #[derive(Default)]
    pub enum ClientAuthentication {
        /// HTTP Basic (`client_secret_basic`).
        #[default]
        Basic = 1 => "basic",
        /// In the request body (`client_secret_post`).
        Post = 2 => "post",
    }
}

/// A client of a token server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OAuthClient {
    /// Canonical form of the parsed URL.
    pub token_url: Box<str>,
    pub id: Box<str>,
    pub secret: Sealed,
    pub scope: Option<Box<str>>,
    pub audience: Option<Box<str>>,
    /// RFC 8707.
    pub resource: Option<Box<str>>,
    pub authentication: ClientAuthentication,
    /// Further parameters of the token request, by name.
    pub parameters: Vec<(Box<str>, Box<str>)>,
}
