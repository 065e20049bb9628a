"""Reading data: `layout` (folders of a category), `images`, `download` (MVTec AD), `samples` (shipped)."""
