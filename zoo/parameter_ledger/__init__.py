"""Where every parameter of a model comes from: formulas, tables, a page and a quiz."""
