"""Examples of data sets and models of one's own; `docs/your-own-data-and-model.md` walks through them."""
