//! Aligned rows under titles, with colours on a terminal.

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, Row, Width, presets};

/// Bound of a cell, in characters. JSON output is never cut.
pub(super) const CELL_CHARACTERS_MAX: usize = 72;
/// Spaces between two columns.
const GAP: u16 = 2;

/// A table that is printed page by page. Columns never shrink, so that later pages match earlier
/// ones.
pub(super) struct Table {
    titles: Vec<String>,
    widths: Vec<u16>,
    started: bool,
    coloured: bool,
}

impl Table {
    pub(super) fn new(titles: Vec<String>, coloured: bool) -> Self {
        let widths = vec![0; titles.len()];
        Self { titles, widths, started: false, coloured }
    }

    /// The lines of a page. The first page begins with the titles.
    pub(super) fn page(&mut self, rows: &[Vec<String>]) -> Vec<String> {
        let mut table = comfy_table::Table::new();
        table.load_preset(presets::NOTHING);
        table.style_text_only();
        if self.coloured {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !self.started {
            let titles = self.titles.iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold));
            table.set_header(Row::from(titles));
        }
        for row in rows {
            let cells = row.iter().zip(&self.titles).map(|(text, title)| self.cell(text, title));
            table.add_row(Row::from(cells));
        }
        self.started = true;
        let found = table.column_max_content_widths();
        for ((column, width), found) in table.column_iter_mut().zip(&mut self.widths).zip(found) {
            *width = (*width).max(found);
            column.set_padding((0, GAP));
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(*width + GAP)));
        }
        if table.is_empty() && table.header().is_none() { Vec::new() } else { trimmed(&table) }
    }

    fn cell(&self, text: &str, title: &str) -> Cell {
        let cell = Cell::new(text);
        match colour_of(title, text) {
            Some(colour) if self.coloured => cell.fg(colour),
            _ => cell,
        }
    }
}

fn trimmed(table: &comfy_table::Table) -> Vec<String> {
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// Colours of states, where they are good, bad or waiting.
fn colour_of(title: &str, text: &str) -> Option<Color> {
    if !title.eq_ignore_ascii_case("status") {
        return None;
    }
    match text {
        "active" | "delivered" | "completed" | "acknowledged" => Some(Color::Green),
        "dead" | "disabled" | "failed" => Some(Color::Red),
        "pending" | "partial" | "paused" | "running" => Some(Color::Yellow),
        _ => None,
    }
}

pub(super) fn cut(text: String) -> String {
    if text.chars().count() <= CELL_CHARACTERS_MAX {
        return text;
    }
    text.chars().take(CELL_CHARACTERS_MAX - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn table_aligns_pages_and_prints_titles_once() {
        let mut table = Table::new(texts(&["ID", "TYPE"]), false);
        let first = table.page(&[texts(&["evt_1", "a"]), texts(&["evt_22", "order.paid"])]);
        assert_eq!(first, ["ID      TYPE", "evt_1   a", "evt_22  order.paid"]);
        assert_eq!(table.page(&[texts(&["e", "b"])]), ["e       b"]);
        assert_eq!(table.page(&[texts(&["evt_4444", "b"])]), ["evt_4444  b"]);
        assert_eq!(table.page(&[]), Vec::<String>::new());
        // Characters of two columns.
        let wide = Table::new(texts(&["名前", "B"]), false).page(&[texts(&["a", "b"])]);
        assert_eq!(wide, ["名前  B", "a     b"]);
    }

    #[test]
    fn states_have_a_colour_on_a_terminal_alone() {
        let row = [texts(&["dead", "dead"])];
        let plain = Table::new(texts(&["STATUS", "ID"]), false).page(&row).join("\n");
        assert!(!plain.contains('\u{1b}'), "{plain}");
        let coloured = Table::new(texts(&["STATUS", "ID"]), true).page(&row).join("\n");
        assert_eq!(coloured.matches("dead").count(), 2);
        let line = coloured.lines().nth(1).unwrap();
        assert!(line.starts_with("\u{1b}[") && line.ends_with("  dead"), "{line:?}");
    }
}
