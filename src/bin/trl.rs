//! `trl`: see [`trl::cli`].

fn main() {
    std::process::exit(trl::cli::main());
}
