//! Arguments -> journal -> configuration -> daemon -> exit code.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    ichd::cli::main()
}
