//! Templates render, and hostile ones fail within their bounds.

use super::*;
use crate::rules::tests::event;

fn event_with(data: &str) -> Event {
    Event { data: Bytes::copy_from_slice(data.as_bytes()), ..event() }
}

fn rendered(source: &str, media: &str, data: &str) -> Result<String, TemplateError> {
    let template = BodyTemplate::compile(source, media)?;
    template.render(&event_with(data)).map(|body| String::from_utf8(body.to_vec()).unwrap())
}

fn json(source: &str, data: &str) -> Result<String, TemplateError> {
    rendered(source, "application/json", data)
}

#[test]
fn values_are_printed_as_json_in_json_bodies() {
    let data = r#"{"who": "a \"b\" <c> é", "sum": 1.5, "tags": ["x", "y"], "none": null, "big": 18446744073709551615}"#;
    for (source, expected) in [
        (r#"{"text": {{ data.who }}}"#, r#"{"text": "a \"b\" <c> é"}"#),
        (r#"{"text": {{ ("by " ~ data.who)|tojson }}}"#, r#"{"text": "by a \"b\" <c> é"}"#),
        (r#"{"t": {{ "sum " ~ data.sum }}, "d": {{ data.tags }}}"#, r#"{"t": "sum 1.5", "d": ["x","y"]}"#),
        (
            r#"[{{ id }}, {{ type }}, {{ tenant }}, {{ stream }}]"#,
            r#"["evt_1", "order.paid", "default", null]"#,
        ),
        (r#"{{ data.none }}"#, "null"),
        (r#"{{ data.big }}"#, "18446744073709551615"),
        (
            r#"[{% for tag in data.tags %}{{ tag|upper }}{% if not loop.last %},{% endif %}{% endfor %}]"#,
            r#"["X","Y"]"#,
        ),
        (r#"{{ data.missing|default("none") }}"#, r#""none""#),
        (r#"{% set name = data.who[:1] %}{{ name }}"#, r#""a""#),
        (r#"{{ {"a": "red", "b": "blue"}[data.tags|first] if data.sum > 2 else "grey" }}"#, r#""grey""#),
    ] {
        assert_eq!(json(source, data).as_deref(), Ok(expected), "{source}");
    }
    let text = rendered("Hello {{ data.who }}: {{ data.tags }}", "text/plain", data).unwrap();
    assert!(text.starts_with("Hello a \"b\" <c> é: "), "{text}");
    let form = rendered("text={{ data.who|urlencode }}", "application/x-www-form-urlencoded", data).unwrap();
    assert_eq!(form, "text=a%20%22b%22%20%3Cc%3E%20%C3%A9");
}

/// The page's examples, for an event with and without optional data.
#[test]
fn examples_of_the_page_render() {
    let page = include_str!("../../docs/requests.md");
    let examples: Vec<_> =
        page.split("```jinja\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        for data in [r#"{"orderId": 42}"#, r#"{"orderId": "a\"b", "customer": "Ann"}"#] {
            json(example, data).unwrap();
        }
    }
    for name in grammar::FILTERS.iter().chain(&grammar::TESTS).filter(|name| **name != "d") {
        assert!(page.contains(&format!("`{name}`")), "the page lacks {name}");
    }
}

#[test]
fn compilation_errors_name_the_line() {
    for (source, line, detail) in [
        ("{\n  {{ data. }}", Some(2), "syntax error"),
        ("{% for a in data %}", Some(1), "syntax error"),
        ("\n\n{% include 'x' %}", Some(3), "unknown statement include"),
        ("{% macro m() %}{% endmacro %}", Some(1), "unknown statement macro"),
        ("{% extends 'x' %}", Some(1), "unknown statement"),
        ("{{ event.id }}", None, "unknown variable `event`"),
        ("{{ data|shell }}", Some(1), "unknown filter `shell`"),
        ("{{ data is eq(1) }}", Some(1), "unknown test `eq`"),
        ("{{ range(10) }}", Some(1), "functions are not supported"),
        ("{{ data.a + data.b }}", Some(1), "`~` joins texts"),
        ("{{ 'x' * 1000000000 }}", Some(1), "not supported"),
        ("{{ [data, data] }}", Some(1), "only constants"),
        ("{% if data == data %}{% endif %}", Some(1), "a constant on one side"),
        ("{% set x %}{{ data }}{% endset %}", Some(1), "`set` needs a value"),
        ("{% with a = data %}{% endwith %}", Some(1), "use `set`"),
        ("{% for a in data recursive %}{{ loop(a) }}{% endfor %}", Some(1), "recursive"),
        ("{% autoescape false %}{{ data }}{% endautoescape %}", Some(1), "`autoescape`"),
    ] {
        let error = json(source, "{}").unwrap_err();
        assert_eq!(error.line, line, "{source}: {error}");
        assert!(error.to_string().contains(detail), "{source}: {error}");
    }
    let long = "x".repeat(limits::BODY_TEMPLATE_BYTES_MAX + 1);
    assert!(json(&long, "{}").unwrap_err().detail.contains("at most"));
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5_000), ")".repeat(5_000));
    assert!(json(&deep, "{}").is_err());
    let nested = format!("{}{}", "{% if true %}".repeat(600), "{% endif %}".repeat(600));
    assert!(json(&nested, "{}").is_err());
}

/// Compilation of a deep syntax tree would overflow the stack.
#[test]
fn long_chains_are_rejected() {
    for source in [
        format!("{{{{ data{} }}}}", ".a".repeat(7_000)),
        format!("{{{{ data{} }}}}", "|d".repeat(7_000)),
        format!("{{{{ {} }}}}", vec!["data"; 2_000].join(" ~ ")),
        format!("{{{{ {}data }}}}", "not ".repeat(3_000)),
        format!("{{{{ {}data }}}}", "-".repeat(10_000)),
        format!("{{% if data %}}{}{{% endif %}}", "{% elif data %}".repeat(1_000)),
        format!("{}{}", "{% for a in data %}".repeat(400), "{% endfor %}".repeat(400)),
        format!("{{{{ data{} }}}}", "[0]".repeat(4_000)),
    ] {
        assert!(json(&source, "{}").is_err(), "{}", &source[..40]);
    }
    // The longest chains that are accepted compile.
    let most = format!("{{{{ data|default(0){} }}}}", "|d".repeat(90));
    assert_eq!(json(&most, "1").as_deref(), Ok("1"));
    let elifs = format!("{{% if false %}}{}{{% else %}}1{{% endif %}}", "{% elif false %}".repeat(50));
    assert_eq!(json(&elifs, "{}").as_deref(), Ok("1"));
    let nested = format!("{}1{}", "{% if true %}".repeat(60), "{% endif %}".repeat(60));
    assert_eq!(json(&nested, "{}").as_deref(), Ok("1"));
}

#[test]
fn rendering_errors_name_the_problem() {
    for (source, data, detail) in [
        ("{{ data.who }}", "{}", "undefined"),
        ("{{ data.who.name }}", "{}", "undefined"),
        ("{{ data|int }}", "[1]", "line 1"),
        ("{\"a\": {{ data }}", "1", "not JSON"),
        ("\"Order {{ data }}\"", "\"x\"", "not JSON"),
        ("{{ data }}", "1e999", "cannot be read"),
    ] {
        let error = json(source, data).unwrap_err();
        assert!(error.to_string().contains(detail), "{source}: {error}");
    }
}

#[test]
fn hostile_templates_end_within_their_bounds() {
    let items = format!("[{}]", vec!["1"; 1_000].join(","));
    let text = format!("\"{}\"", "x".repeat(200_000));
    let loops = |depth: usize| {
        let opened: String = (0..depth).map(|n| format!("{{% for a{n} in data %}}")).collect();
        format!("{opened}1{}", "{% endfor %}".repeat(depth))
    };
    let doubled = format!("{{% set a = data %}}{}{{{{ a }}}}", "{% set a = a ~ a %}".repeat(60));
    for (story, source, data) in [
        ("a loop of loops", loops(8), items.as_str()),
        ("a doubled text", doubled, text.as_str()),
        ("a text replaced by itself", "{{ data|replace('x', data) }}".to_owned(), text.as_str()),
        ("a repeated text", "{{ data }}".repeat(1_000), text.as_str()),
        (
            "an item per instruction",
            "{% for a in data %}{{ data|tojson }}{% endfor %}".to_owned(),
            items.as_str(),
        ),
        ("a split text", "{{ data|split('')|join(data) }}".to_owned(), text.as_str()),
    ] {
        let error = json(&source, data).unwrap_err();
        let found = error.to_string();
        let is_bounded = found.contains("too much work") || found.contains("more than");
        assert!(is_bounded, "{story}: {found}");
    }
}
