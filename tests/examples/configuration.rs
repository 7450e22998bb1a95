//! Prints `docs/reference/configuration.md`, from the programs' command lines and the list of a
//! realm's variables. An example and not a program, because only tests know both programs.

use clap::{Arg, ArgAction, Command};
use twofactor_core::settings::variables::{Group, VARIABLES};

const INTRODUCTION: &str = "\
# Configuration

<!-- Generated; do not edit. To update it:
cargo run -q -p twofactor-tests --example configuration > docs/reference/configuration.md -->

Every flag has a variable, and a flag takes precedence over its variable. Passwords and keys have no
flags, because every user of a machine can see command lines.

With `dev`, the sidecar also reads variables from a file `.env` in the current directory. Those of
the environment take precedence. In the file, a value with a `$` needs single quotes.

The values of the Helm chart are described in
[its values](../../charts/fountainai-2fa/values.yaml).
";

const REALM: &str = "\
## Settings of a realm

`twofactor-sidecar dev` reads these variables. `twofactor-operator controller` reads them as
defaults for realms that do not set them. The Secret that a `TwoFactorRealm` names for its providers
has those of email, text messages and webhooks as keys; see [how codes reach
users](../guides/delivery.md). An empty variable counts as absent.

`dev` has flags for some of them, as the tables say. It reads CA certificates from files: the
variables `SMTP_CA_FILE`, `TWILIO_CA_FILE` and `WEBHOOK_CA_FILE` replace `SMTP_CA`, `TWILIO_CA` and
`WEBHOOK_CA`.
";

fn main() {
    let sidecar = twofactor_sidecar::cli::definition();
    let operator = twofactor_operator::cli::definition();
    print!("{INTRODUCTION}");
    print_program(&sidecar);
    print_program(&operator);
    print!("\n{REALM}");
    let dev = sidecar.find_subcommand("dev").expect("the command dev");
    for group in Group::ALL {
        print_group(group, dev);
    }
}

fn print_program(program: &Command) {
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        println!("\n## `{} {}`\n", program.get_name(), command.get_name());
        println!("{}.", cell(&text(command.get_about())));
        let arguments: Vec<_> =
            command.get_arguments().filter(|argument| is_shown(argument)).collect();
        if arguments.is_empty() {
            continue;
        }
        println!("\n| flag | variable | default | meaning |\n| --- | --- | --- | --- |");
        for argument in arguments {
            print_argument(argument);
        }
    }
}

/// Whether an argument is in the table of its command, and not in one of the realm's settings.
fn is_shown(argument: &Arg) -> bool {
    let automatic = argument.get_id() == "help" || argument.get_id() == "version";
    let environment = variable(argument);
    let of_a_realm =
        VARIABLES.iter().any(|listed| listed.name == environment) || environment == "SMTP_CA_FILE";
    !automatic && !argument.is_hide_set() && !of_a_realm
}

fn print_argument(argument: &Arg) {
    let help = text(argument.get_long_help().or(argument.get_help()));
    let (meaning, written) = split_default(&help);
    let given: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match (given.is_empty(), written) {
        _ if argument.is_required_set() => "required".to_owned(),
        _ if matches!(argument.get_action(), ArgAction::SetTrue) => "off".to_owned(),
        (_, Some(default)) => literal(default),
        (false, None) => format!("`{}`", given.join(",")),
        (true, None) => "none".to_owned(),
    };
    let environment = variable(argument);
    let environment =
        if environment.is_empty() { String::new() } else { format!("`{environment}`") };
    println!("| {} | {environment} | {default} | {} |", flag(argument), cell(&meaning));
}

fn print_group(group: Group, dev: &Command) {
    let title = match group {
        Group::Policy => "Policy",
        Group::Tokens => "Tokens",
        Group::Email => "Email",
        Group::Sms => "Text messages",
        Group::Webhook => "Webhooks",
        Group::Messages => "Messages",
    };
    println!("\n### {title}\n");
    println!("| variable | flag of `dev` | default | meaning |\n| --- | --- | --- | --- |");
    for listed in VARIABLES.iter().filter(|listed| listed.group == group) {
        let flag = dev.get_arguments().find(|argument| variable(argument) == listed.name);
        println!(
            "| `{}` | {} | {} | {} |",
            listed.name,
            flag.map(self::flag).unwrap_or_default(),
            listed.default.map_or_else(|| "none".to_owned(), literal),
            cell(listed.meaning)
        );
    }
}

/// A flag with the name of its value, or the name of a positional argument.
fn flag(argument: &Arg) -> String {
    let name = argument.get_long().map(|long| format!("--{long}"));
    let value = argument
        .get_action()
        .takes_values()
        .then(|| argument.get_value_names().unwrap_or_default().join(" "))
        .filter(|value| !value.is_empty());
    let parts: Vec<_> = name.into_iter().chain(value).collect();
    format!("`{}`", parts.join(" ")).replace('|', "\\|")
}

fn variable(argument: &Arg) -> String {
    argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn text(styled: Option<&clap::builder::StyledStr>) -> String {
    styled.map(ToString::to_string).unwrap_or_default()
}

/// Takes `[default: ...]` out of a help text.
fn split_default(help: &str) -> (String, Option<&str>) {
    let found = help.split_once("[default: ");
    let found = found.and_then(|(before, rest)| Some((before, rest.split_once(']')?)));
    found.map_or((help.to_owned(), None), |(before, (default, after))| {
        (format!("{}{after}", before.trim_end()), Some(default))
    })
}

/// A default: as code if it is a value, as words if it is a sentence.
fn literal(default: &str) -> String {
    if default == "none" || default.contains(' ') { cell(default) } else { format!("`{default}`") }
}

/// Plain text as the cell of a table, with names of flags, variables and paths as code.
fn cell(text: &str) -> String {
    let words = text.split_whitespace().map(|word| {
        let name = word.trim_matches(|c: char| ".,;:()".contains(c));
        let is_code = name.starts_with("--")
            || name.contains("{{")
            || name.starts_with('/') && name.len() > 1
            || name.contains('_') && name.bytes().all(|byte| !byte.is_ascii_lowercase());
        let escaped = name.replace('|', "\\|");
        if is_code {
            word.replace(name, &format!("`{escaped}`"))
        } else {
            word.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
        }
    });
    words.collect::<Vec<_>>().join(" ")
}
