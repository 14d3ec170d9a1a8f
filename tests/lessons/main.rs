//! What broke elsewhere, and what must not break here: one named test per story. The table of rows and names is in
//! `docs/testing.md`. Images by the stock tools where they are installed; a line says so where they are not.

mod bounded;
mod corruption;
mod files;
mod growth;
mod guard;
mod host_calls;
mod lazy;
mod lazy_stock;
mod repair;
mod reuse;
mod security;
mod waste;
