//! The layout of an endpoint's outgoing request: the options `signatures`, `request` and `auth`.

use super::endpoint::{get_sealed, put_sealed};
use super::fields::{
    CodecError, get_bool, get_coded, get_list, get_option, get_text, put_list, put_option, put_text,
};
use crate::codec::{Reader, put_u8};
use crate::domain::{
    AmqpTarget, ClientAuthentication, CustomSignature, EndpointAuth, OAuthClient, RequestMethod,
    RequestShape, RoutingKey, SignatureAlgorithm, SignatureEncoding, SignaturePreset, SignatureScheme,
};

fn put_text_option(out: &mut Vec<u8>, text: Option<&str>) {
    put_option(out, text.as_ref(), |out, text| put_text(out, text));
}

/// The preset of the endpoint's own field: of a single preset, and otherwise a placeholder.
pub(super) fn only_preset(schemes: &[SignatureScheme]) -> Option<SignaturePreset> {
    match schemes {
        [SignatureScheme::Preset(preset)] => Some(*preset),
        _ => None,
    }
}

/// A list of 1 preset, or 2 custom (header, algorithm, encoding, template, value, separator?).
pub(super) fn put_signatures(out: &mut Vec<u8>, schemes: &[SignatureScheme]) {
    put_list(out, schemes, |out, scheme| match scheme {
        SignatureScheme::Preset(preset) => {
            put_u8(out, 1);
            put_u8(out, preset.code());
        }
        SignatureScheme::Custom(custom) => {
            put_u8(out, 2);
            put_text(out, &custom.header);
            put_u8(out, custom.algorithm.code());
            put_u8(out, custom.encoding.code());
            put_text(out, &custom.template);
            put_text(out, &custom.value);
            put_text_option(out, custom.separator.as_deref());
        }
    });
}

pub(super) fn get_signatures(r: &mut Reader<'_>) -> Result<Vec<SignatureScheme>, CodecError> {
    get_list(r, 2, |r| match r.get_u8()? {
        1 => Ok(SignatureScheme::Preset(get_coded(r, "signature preset", SignaturePreset::from_code)?)),
        2 => Ok(SignatureScheme::Custom(CustomSignature {
            header: get_text(r)?,
            algorithm: get_coded(r, "signature algorithm", SignatureAlgorithm::from_code)?,
            encoding: get_coded(r, "signature encoding", SignatureEncoding::from_code)?,
            template: get_text(r)?,
            value: get_text(r)?,
            separator: get_option(r, get_text)?,
        })),
        found => Err(CodecError::UnknownValue { what: "signature scheme", found: u64::from(found) }),
    })
}

/// Method, content type?, body template?
pub(super) fn put_request(out: &mut Vec<u8>, request: &RequestShape) {
    put_u8(out, request.method.code());
    put_text_option(out, request.content_type.as_deref());
    put_text_option(out, request.body.as_deref());
}

pub(super) fn get_request(r: &mut Reader<'_>) -> Result<RequestShape, CodecError> {
    Ok(RequestShape {
        method: get_coded(r, "request method", RequestMethod::from_code)?,
        content_type: get_option(r, get_text)?,
        body: get_option(r, get_text)?,
    })
}

/// 1 basic (user name, sealed password), 2 OAuth 2.0 (token URL, client id, sealed secret, scope?,
/// audience?).
pub(super) fn put_auth(out: &mut Vec<u8>, auth: &EndpointAuth) {
    match auth {
        EndpointAuth::Basic { username, password } => {
            put_u8(out, 1);
            put_text(out, username);
            put_sealed(out, password);
        }
        EndpointAuth::OAuth2(client) => {
            put_u8(out, 2);
            put_text(out, &client.token_url);
            put_text(out, &client.id);
            put_sealed(out, &client.secret);
            put_text_option(out, client.scope.as_deref());
            put_text_option(out, client.audience.as_deref());
        }
    }
}

pub(super) fn get_auth(r: &mut Reader<'_>) -> Result<EndpointAuth, CodecError> {
    match r.get_u8()? {
        1 => Ok(EndpointAuth::Basic { username: get_text(r)?, password: get_sealed(r)? }),
        2 => Ok(EndpointAuth::OAuth2(OAuthClient {
            token_url: get_text(r)?,
            id: get_text(r)?,
            secret: get_sealed(r)?,
            scope: get_option(r, get_text)?,
            audience: get_option(r, get_text)?,
            resource: None,
            authentication: ClientAuthentication::Basic,
            parameters: Vec::new(),
        })),
        found => Err(CodecError::UnknownValue { what: "authorization", found: u64::from(found) }),
    }
}

/// Whether a client has what [`put_token_request`] writes.
pub(super) fn has_token_request(client: &OAuthClient) -> bool {
    client.authentication != ClientAuthentication::default() || client.resource.is_some()
}

/// Client authentication, resource?.
pub(super) fn put_token_request(out: &mut Vec<u8>, client: &OAuthClient) {
    put_u8(out, client.authentication.code());
    put_text_option(out, client.resource.as_deref());
}

pub(super) fn get_token_request(r: &mut Reader<'_>, client: &mut OAuthClient) -> Result<(), CodecError> {
    client.authentication = get_coded(r, "client authentication", ClientAuthentication::from_code)?;
    client.resource = get_option(r, get_text)?;
    Ok(())
}

/// Exchange, routing key (1 type, 2 stream, 3 ordering key, 4 text), whether it is declared.
pub(super) fn put_amqp(out: &mut Vec<u8>, target: &AmqpTarget) {
    put_text(out, &target.exchange);
    match &target.routing_key {
        RoutingKey::Type => put_u8(out, 1),
        RoutingKey::Stream => put_u8(out, 2),
        RoutingKey::OrderingKey => put_u8(out, 3),
        RoutingKey::Literal(text) => {
            put_u8(out, 4);
            put_text(out, text);
        }
    }
    put_u8(out, u8::from(target.declares));
}

pub(super) fn get_amqp(r: &mut Reader<'_>) -> Result<AmqpTarget, CodecError> {
    let exchange = get_text(r)?;
    let routing_key = match r.get_u8()? {
        1 => RoutingKey::Type,
        2 => RoutingKey::Stream,
        3 => RoutingKey::OrderingKey,
        4 => RoutingKey::Literal(get_text(r)?),
        found => return Err(CodecError::UnknownValue { what: "routing key", found: u64::from(found) }),
    };
    Ok(AmqpTarget { exchange, routing_key, declares: get_bool(r)? })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{Endpoint, Sealed};

    /// An endpoint with signatures, a request and OAuth 2.0.
    pub(crate) fn sample_endpoint(endpoint: Endpoint) -> Endpoint {
        let custom = CustomSignature {
            header: "X-Sig".into(),
            algorithm: SignatureAlgorithm::Sha1,
            encoding: SignatureEncoding::Base64,
            template: "{id}.{body}".into(),
            value: "a={signature}".into(),
            separator: Some(",".into()),
        };
        let request = RequestShape {
            method: RequestMethod::Put,
            content_type: Some("text/plain".into()),
            body: Some("{{ id }}".into()),
        };
        let client = OAuthClient {
            token_url: "https://a.example/t".into(),
            id: "c".into(),
            secret: Sealed::Plain([8].into()),
            scope: Some("s".into()),
            audience: None,
            resource: None,
            authentication: ClientAuthentication::Basic,
            parameters: Vec::new(),
        };
        Endpoint {
            signatures: vec![
                SignatureScheme::Preset(SignaturePreset::Standard),
                SignatureScheme::Custom(custom),
            ],
            request,
            auth: Some(EndpointAuth::OAuth2(client)),
            ..endpoint
        }
    }

    /// An endpoint whose client authenticates in the body, for a resource.
    pub(crate) fn posting_endpoint(endpoint: Endpoint) -> Endpoint {
        let mut endpoint = sample_endpoint(endpoint);
        if let Some(EndpointAuth::OAuth2(client)) = &mut endpoint.auth {
            client.authentication = ClientAuthentication::Post;
            client.resource = Some("urn:a".into());
        }
        endpoint
    }

    /// An endpoint whose client sends a further parameter.
    pub(crate) fn parametric_endpoint(endpoint: Endpoint) -> Endpoint {
        let mut endpoint = sample_endpoint(endpoint);
        if let Some(EndpointAuth::OAuth2(client)) = &mut endpoint.auth {
            client.parameters = vec![("a".into(), "1".into())];
        }
        endpoint
    }
}
