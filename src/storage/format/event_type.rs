//! The fields of a registered event type.

use super::fields::{
    CodecError, get_bool, get_coded, get_list, get_name, get_option, get_text, get_time, put_list,
    put_option, put_text, put_time,
};
use super::record::STATE_TYPE_LAYOUT;
use crate::codec::{Reader, put_u8, put_varint};
use crate::domain::{Compatibility, Position, TypeDefinition, TypeMigration, TypeVersion};

pub(super) fn put_type(out: &mut Vec<u8>, definition: &TypeDefinition) {
    let TypeDefinition {
        name,
        description,
        compatibility,
        transitive,
        versions,
        migrations,
        state,
        created_at,
        updated_at,
        revision,
    } = definition;
    put_text(out, name.as_str());
    put_text(out, description);
    put_u8(out, compatibility.code());
    put_u8(out, u8::from(*transitive));
    put_list(out, versions, |out, version| {
        put_text(out, version.version.as_str());
        put_text(out, &version.schema);
        put_u8(out, u8::from(version.deprecated));
        put_option(out, version.sunset.as_ref(), |out, at| put_time(out, *at));
        put_list(out, &version.examples, |out, example| put_text(out, example));
    });
    put_list(out, migrations, |out, migration| {
        put_text(out, migration.from.as_str());
        put_text(out, migration.to.as_str());
        put_text(out, &migration.patch);
    });
    put_time(out, *created_at);
    put_time(out, *updated_at);
    put_varint(out, revision.0);
    // In their own layout, so that a type without rules has the bytes of earlier versions.
    if let Some(state) = state {
        put_text(out, state);
    }
}

pub(super) fn get_type(r: &mut Reader<'_>, layout: u8) -> Result<TypeDefinition, CodecError> {
    let mut definition = TypeDefinition {
        name: get_name(r)?,
        description: get_text(r)?,
        compatibility: get_coded(r, "compatibility", Compatibility::from_code)?,
        transitive: get_bool(r)?,
        versions: get_list(r, 5, get_version)?,
        migrations: get_list(r, 3, |r| {
            Ok(TypeMigration { from: get_name(r)?, to: get_name(r)?, patch: get_text(r)? })
        })?,
        state: None,
        created_at: get_time(r)?,
        updated_at: get_time(r)?,
        revision: Position(r.get_varint()?),
    };
    if layout == STATE_TYPE_LAYOUT {
        definition.state = Some(get_text(r)?);
    }
    Ok(definition)
}

fn get_version(r: &mut Reader<'_>) -> Result<TypeVersion, CodecError> {
    Ok(TypeVersion {
        version: get_name(r)?,
        schema: get_text(r)?,
        deprecated: get_bool(r)?,
        sunset: get_option(r, get_time)?,
        examples: get_list(r, 1, get_text)?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::Timestamp;

    fn time(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    pub(in crate::storage::format) fn sample_type() -> TypeDefinition {
        let version = |text: &str, sunset| TypeVersion {
            version: text.parse().unwrap(),
            schema: "{\"type\":\"object\"}".into(),
            deprecated: sunset == Some(time(5_000)),
            sunset,
            examples: vec!["{}".into(), "{\"a\":1}".into()],
        };
        TypeDefinition {
            name: "pet.adopted".parse().unwrap(),
            description: "A pet".into(),
            compatibility: Compatibility::Full,
            transitive: true,
            versions: vec![version("1.0", Some(time(5_000))), version("2.0", None)],
            migrations: vec![TypeMigration {
                from: "1.0".parse().unwrap(),
                to: "2.0".parse().unwrap(),
                patch: "[]".into(),
            }],
            state: None,
            created_at: time(1_000),
            updated_at: time(2_000),
            revision: Position(77),
        }
    }

    pub(in crate::storage::format) fn type_with_rules() -> TypeDefinition {
        TypeDefinition { state: Some("[{}]".into()), ..sample_type() }
    }

    /// As in `golden.txt`: these bytes never change.
    #[test]
    fn golden_bytes_of_a_type_with_rules() {
        let bytes = |definition: &TypeDefinition| {
            let mut out = Vec::new();
            put_type(&mut out, definition);
            out
        };
        let golden = [&bytes(&sample_type())[..], b"\x04[{}]"].concat();
        assert_eq!(bytes(&type_with_rules()), golden);
        assert_eq!(get_type(&mut Reader::new(&golden), STATE_TYPE_LAYOUT), Ok(type_with_rules()));
        assert_eq!(get_type(&mut Reader::new(&golden), 1), Ok(sample_type()));
        assert!(get_type(&mut Reader::new(&bytes(&sample_type())), STATE_TYPE_LAYOUT).is_err());
    }
}
