"""A report as files: Markdown, a page of HTML, tables; and the table of a run on the terminal."""
