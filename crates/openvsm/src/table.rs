//! Tables on standard output.

/// Lines of a table: columns as wide as their widest cell, two spaces apart. Columns in `right` are aligned to the
/// right; the last one is not padded.
pub fn lines(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let cell = |(column, cell): (usize, &String)| {
        let width = widths[column];
        if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
    };
    let line = |row: &Vec<String>| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ");
    rows.iter().map(|row| line(row).trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>();
        let rows = [row(&["name", "value", ""]), row(&["\u{e9}", "1", "x"]), row(&["longer", "100"])];
        assert_eq!(lines(&rows, &[1]), ["name    value", "\u{e9}           1  x", "longer    100"]);
        assert!(lines(&[], &[]).is_empty());
    }
}
