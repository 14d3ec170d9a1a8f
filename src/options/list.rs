//! Every option, for who lists them.

use super::amend::AmendOptions;
use super::create::Given;
use super::luks::{LuksAmend, LuksGiven};
use super::open::OpenOptions;
use super::table::{OptionInfo, Scope, Table};

/// The options of one scope, in the order of `-o help`.
pub fn list(scope: Scope) -> Vec<&'static OptionInfo> {
    fn of<T: Table>() -> Vec<&'static OptionInfo> {
        T::ROWS.iter().map(|row| &row.info).collect()
    }
    match scope {
        Scope::Create => of::<Given>(),
        Scope::Open => of::<OpenOptions>(),
        Scope::Amend => of::<AmendOptions>(),
        Scope::CreateLuks => of::<LuksGiven>(),
        Scope::AmendLuks => of::<LuksAmend>(),
    }
}
