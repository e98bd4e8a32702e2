//! The fields of a tenant's settings. A quota that is absent has its default.

use super::endpoint::{get_retry, put_retry};
use super::fields::{
    CodecError, get_coded, get_duration, get_list, get_name, get_option, get_text, get_time, put_duration,
    put_list, put_option, put_text, put_time,
};
use crate::codec::{Reader, put_u8, put_varint};
use crate::domain::{Position, Quota, QuotaOverride, QuotaOverrides, TenantDelivery, TenantSettings};

/// Kinds of a quota's override.
const OFF: u8 = 1;
const LIMIT: u8 = 2;

pub(super) fn put_tenant(out: &mut Vec<u8>, settings: &TenantSettings) {
    let TenantSettings { tenant, name, metadata, quotas, delivery, created_at, updated_at, revision } =
        settings;
    put_text(out, tenant.as_str());
    put_text(out, name);
    put_option(out, metadata.as_ref(), |out, text| put_text(out, text));
    put_quotas(out, quotas);
    put_option(out, delivery.max_in_flight.as_ref(), |out, limit| put_varint(out, u64::from(*limit)));
    put_option(out, delivery.timeout.as_ref(), |out, timeout| put_duration(out, *timeout));
    put_option(out, delivery.retry.as_ref(), put_retry);
    put_time(out, *created_at);
    put_time(out, *updated_at);
    put_varint(out, revision.0);
}

pub(super) fn get_tenant(r: &mut Reader<'_>) -> Result<TenantSettings, CodecError> {
    Ok(TenantSettings {
        tenant: get_name(r)?,
        name: get_text(r)?,
        metadata: get_option(r, get_text)?,
        quotas: get_quotas(r)?,
        delivery: TenantDelivery {
            max_in_flight: get_option(r, |r| Ok(r.get_varint_u32()?))?,
            timeout: get_option(r, get_duration)?,
            retry: get_option(r, get_retry)?,
        },
        created_at: get_time(r)?,
        updated_at: get_time(r)?,
        revision: Position(r.get_varint()?),
    })
}

fn put_quotas(out: &mut Vec<u8>, quotas: &QuotaOverrides) {
    let own: Vec<_> = Quota::ALL
        .into_iter()
        .map(|quota| (quota, quotas.get(quota)))
        .filter(|(_, limit)| *limit != QuotaOverride::Default)
        .collect();
    put_list(out, &own, |out, (quota, limit)| {
        put_u8(out, quota.code());
        match limit {
            QuotaOverride::Limit(limit) => {
                put_u8(out, LIMIT);
                put_varint(out, *limit);
            }
            QuotaOverride::Off | QuotaOverride::Default => put_u8(out, OFF),
        }
    });
}

fn get_quotas(r: &mut Reader<'_>) -> Result<QuotaOverrides, CodecError> {
    let own = get_list(r, 2, |r| {
        let quota = get_coded(r, "quota", Quota::from_code)?;
        match r.get_u8()? {
            OFF => Ok((quota, QuotaOverride::Off)),
            LIMIT => Ok((quota, QuotaOverride::Limit(r.get_varint()?))),
            found => Err(CodecError::UnknownValue { what: "quota override", found: u64::from(found) }),
        }
    })?;
    // One encoding per value: in the order of their codes, without repetition.
    if let Some(pair) = own.windows(2).find(|pair| pair[0].0.code() >= pair[1].0.code()) {
        return Err(CodecError::UnknownValue { what: "order of quotas", found: u64::from(pair[1].0.code()) });
    }
    let mut quotas = QuotaOverrides::default();
    for (quota, limit) in own {
        quotas.set(quota, limit);
    }
    Ok(quotas)
}
