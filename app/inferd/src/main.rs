#![allow(missing_docs, dead_code)]
mod config;
fn main() {
    let l = config::Loaded::of_process(&config::Arguments::default());
    match l {
        Ok(l) => print!("{}", l.to_toml()),
        Err(e) => eprintln!("{e}"),
    }
}
