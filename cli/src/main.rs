use std::process::ExitCode;

fn main() -> ExitCode {
    anyport_cli::main()
}
