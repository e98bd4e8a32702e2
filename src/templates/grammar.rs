//! The part of the language that a body template may use.
//!
//! Excludes everything that builds containers from containers, repeats a text or compares two
//! values of any size: their work can grow exponentially, and the engine's fuel does not count it
//! or counts it afterwards. Every value is then a part of the event, or as large as its fuel.

use minijinja::machinery::ast::{BinOpKind, CallArg, Compare, Expr, Stmt};
use minijinja::machinery::{Span, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::TemplateError;

pub(super) const FILTERS: [&str; 28] = [
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "replace",
    "reverse",
    "round",
    "sort",
    "split",
    "string",
    "title",
    "tojson",
    "trim",
    "upper",
    "urlencode",
    "safe",
];
pub(super) const TESTS: [&str; 17] = [
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "even",
    "false",
    "float",
    "integer",
    "iterable",
    "mapping",
    "none",
    "number",
    "odd",
    "sequence",
    "startingwith",
    "string",
    "true",
];

/// Maximum tokens of a tag.
const TAG_TOKENS_MAX: usize = 200;
/// Maximum `elif` of a template.
const ELIFS_MAX: usize = 50;

type Checked = Result<(), TemplateError>;

/// Checks a template.
///
/// # Errors
/// The first part that is malformed or excluded.
pub(super) fn check(source: &str, name: &str) -> Checked {
    check_depth(source)?;
    check_statement(&parse(source, name, SyntaxConfig::default())?)
}

/// Checks the length of each tag, and the number of `elif`. The parser bounds the depth of brackets
/// and blocks, but a chain such as `a.b.b.b` nests the syntax tree without a bound. Compilation and
/// destruction of a tree need stack for each level.
fn check_depth(source: &str) -> Checked {
    let (mut tokens, mut elifs) = (0, 0);
    for token in tokenize(source, false, SyntaxConfig::default()) {
        let (token, span) = token?;
        match token {
            Token::VariableStart | Token::BlockStart => tokens = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        tokens += 1;
        if tokens > TAG_TOKENS_MAX {
            return excluded(span, format!("a tag has more than {TAG_TOKENS_MAX} words and signs"));
        }
        if elifs > ELIFS_MAX {
            return excluded(span, format!("more than {ELIFS_MAX} `elif`"));
        }
    }
    Ok(())
}

fn excluded(span: Span, detail: impl Into<String>) -> Checked {
    Err(TemplateError { line: Some(span.start_line as usize), detail: detail.into() })
}

fn check_statements(statements: &[Stmt<'_>]) -> Checked {
    statements.iter().try_for_each(check_statement)
}

fn check_statement(statement: &Stmt<'_>) -> Checked {
    match statement {
        Stmt::Template(template) => check_statements(&template.children),
        Stmt::EmitRaw(_) => Ok(()),
        Stmt::EmitExpr(emitted) => check_expression(&emitted.expr),
        Stmt::ForLoop(repeated) => {
            if repeated.recursive {
                return excluded(repeated.span(), "a loop cannot be recursive");
            }
            check_expression(&repeated.iter)?;
            repeated.filter_expr.iter().try_for_each(check_expression)?;
            check_statements(&repeated.body)?;
            check_statements(&repeated.else_body)
        }
        Stmt::IfCond(condition) => {
            check_expression(&condition.expr)?;
            check_statements(&condition.true_body)?;
            check_statements(&condition.false_body)
        }
        Stmt::Set(set) => check_expression(&set.expr),
        Stmt::WithBlock(block) => excluded(block.span(), "`with` is not supported; use `set`"),
        Stmt::SetBlock(block) => excluded(block.span(), "`set` needs a value: `{% set name = value %}`"),
        Stmt::AutoEscape(block) => excluded(block.span(), "`autoescape` is not supported"),
        Stmt::FilterBlock(block) => excluded(block.span(), "`filter` is not supported as a block"),
        Stmt::Do(call) => excluded(call.span(), "`do` is not supported"),
    }
}

fn check_expressions<'a, 'b: 'a>(expressions: impl IntoIterator<Item = &'a Expr<'b>>) -> Checked {
    expressions.into_iter().try_for_each(check_expression)
}

fn check_expression(expression: &Expr<'_>) -> Checked {
    match expression {
        Expr::Var(_) | Expr::Const(_) => Ok(()),
        Expr::GetAttr(get) => check_expression(&get.expr),
        Expr::GetItem(get) => check_expressions([&get.expr, &get.subscript_expr]),
        Expr::Slice(slice) => {
            check_expression(&slice.expr)?;
            check_expressions([&slice.start, &slice.stop, &slice.step].into_iter().flatten())
        }
        Expr::UnaryOp(operation) => check_expression(&operation.expr),
        Expr::IfExpr(choice) => {
            check_expressions([&choice.test_expr, &choice.true_expr])?;
            choice.false_expr.iter().try_for_each(check_expression)
        }
        Expr::Filter(filter) if !FILTERS.contains(&filter.name) => excluded(
            filter.span(),
            format!("unknown filter `{}`; known are {}", filter.name, FILTERS.join(", ")),
        ),
        Expr::Filter(filter) => {
            filter.expr.iter().try_for_each(check_expression)?;
            check_arguments(&filter.args, filter.span())
        }
        Expr::Test(test) if !TESTS.contains(&test.name) => {
            excluded(test.span(), format!("unknown test `{}`; known are {}", test.name, TESTS.join(", ")))
        }
        Expr::Test(test) => {
            check_expression(&test.expr)?;
            check_arguments(&test.args, test.span())
        }
        Expr::BinOp(operation) => {
            check_expressions([&operation.left, &operation.right])?;
            match operation.op {
                BinOpKind::ScAnd | BinOpKind::ScOr | BinOpKind::Concat => Ok(()),
                BinOpKind::Sub | BinOpKind::Div | BinOpKind::FloorDiv | BinOpKind::Rem => Ok(()),
                BinOpKind::Add => excluded(operation.span(), "`+` is not supported; `~` joins texts"),
                BinOpKind::Mul | BinOpKind::Pow => {
                    excluded(operation.span(), "`*` and `**` are not supported")
                }
                BinOpKind::Eq
                | BinOpKind::Ne
                | BinOpKind::Lt
                | BinOpKind::Lte
                | BinOpKind::Gt
                | BinOpKind::Gte
                | BinOpKind::In => check_operands(&operation.left, &operation.right, operation.span()),
            }
        }
        Expr::Compare(comparison) => check_comparison(comparison, comparison.span()),
        Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => match expression.as_const() {
            Some(_) => Ok(()),
            None => excluded(expression.span(), "a list or map may have only constants"),
        },
        Expr::Call(call) => excluded(call.span(), "functions are not supported"),
    }
}

fn check_comparison(comparison: &Compare<'_>, span: Span) -> Checked {
    let mut left = &comparison.expr;
    check_expression(left)?;
    for operation in &comparison.ops {
        check_expression(&operation.expr)?;
        check_operands(left, &operation.expr, span)?;
        left = &operation.expr;
    }
    Ok(())
}

/// The comparison of two large values of the event is expensive.
fn check_operands(left: &Expr<'_>, right: &Expr<'_>, span: Span) -> Checked {
    if left.as_const().is_some() || right.as_const().is_some() {
        return Ok(());
    }
    excluded(span, "a comparison needs a constant on one side")
}

fn check_arguments(arguments: &[CallArg<'_>], span: Span) -> Checked {
    arguments.iter().try_for_each(|argument| match argument {
        CallArg::Pos(value) | CallArg::Kwarg(_, value) => check_expression(value),
        CallArg::PosSplat(_) | CallArg::KwargSplat(_) => excluded(span, "`*` and `**` are not supported"),
    })
}
