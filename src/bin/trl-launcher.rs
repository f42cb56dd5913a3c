//! `trl-launcher`: see [`trl::launcher`].

fn main() {
    std::process::exit(trl::launcher::main());
}
