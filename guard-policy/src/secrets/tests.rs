use proptest::prelude::*;

use super::*;

fn shown(argv: &[&str]) -> String {
    let argv: Vec<Vec<u8>> = argv.iter().map(|a| a.as_bytes().to_vec()).collect();
    let masked = mask("", &argv);
    masked.argv.iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect::<Vec<_>>().join("|")
}

#[test]
fn the_table_and_every_pattern_load() {
    assert!(PATTERNS.len() == 8);
    assert!(Known::of(None, &[b"/usr/bin/curl"]).is_some());
    assert!(programs::TEXT.len() > 1000);
}

#[test]
fn secrets_of_known_programs_are_masked() {
    for (argv, want) in [
        (&["mysql", "-u", "root", "-phunter2", "db"][..], "mysql|-u|root|-p***|db"),
        (&["mysql", "-p", "db"], "mysql|-p|db"),
        (&["mysql", "--password=hunter2"], "mysql|--password=***"),
        (&["curl", "-u", "bob:hunter2", "https://x"], "curl|-u|bob:***|https://x"),
        (&["curl", "-sSu", "bob:hunter2"], "curl|-sSu|bob:***"),
        (&["curl", "-ubob:hunter2"], "curl|-ubob:***"),
        (&["/usr/bin/sshpass", "-p", "hunter2", "ssh", "h"], "/usr/bin/sshpass|-p|***|ssh|h"),
        (&["sudo", "-u", "bob", "redis-cli", "-a", "hunter2", "get", "x"], "sudo|-u|bob|redis-cli|-a|***|get|x"),
        (&["timeout", "5", "env", "A=b", "redis-cli", "-a", "hunter2"], "timeout|5|env|A=b|redis-cli|-a|***"),
        (&["docker", "login", "-p", "hunter2"], "docker|login|-p|***"),
        (&["docker", "run", "-p", "80:80", "x"], "docker|run|-p|80:80|x"),
        (
            &["aws", "configure", "set", "aws_secret_access_key", "hunter2"],
            "aws|configure|set|aws_secret_access_key|***",
        ),
        (&["openssl", "req", "-key", "k.pem", "-passin", "pass:hunter2"], "openssl|req|-key|k.pem|-passin|***"),
        (&["sh", "-c", "cd /x && mysql -phunter2 db"], "sh|-c|cd /x && mysql -p*** db"),
        (&["sh", "-c", "curl -u 'bob:hunter2' http://h | jq ."], "sh|-c|curl -u 'bob:***' http://h | jq ."),
    ] {
        assert_eq!(shown(argv), want);
    }
}

#[test]
fn secrets_are_known_by_their_names_and_shapes() {
    for (argv, want) in [
        (&["deploy", "--token", "hunter2"][..], "deploy|--token|***"),
        (&["deploy", "--api-key=hunter2", "-x"], "deploy|--api-key=***|-x"),
        (&["env", "PGPASSWORD=hunter2", "psql"], "env|PGPASSWORD=***|psql"),
        (&["sh", "-c", "PGPASSWORD='hunter2' psql; echo done"], "sh|-c|PGPASSWORD='***' psql; echo done"),
        (&["git", "clone", "https://bob:hunter2@h/r"], "git|clone|https://bob:***@h/r"),
        (&["curl", "-H", "Authorization: Bearer abcdef123456", "u"], "curl|-H|Authorization: Bearer ***|u"),
        (&["curl", "-H", "PRIVATE-TOKEN: abcdef123456"], "curl|-H|PRIVATE-TOKEN: ***"),
        (&["curl", "-d", "{\"user\":\"a\",\"password\":\"hunter2\"}"], "curl|-d|{\"user\":\"a\",\"password\":\"***\"}"),
        (&["x", "https://h/?token=hunter2&b=c"], "x|https://h/?token=***&b=c"),
        (&["echo", "ghp_0123456789abcdef0123456789abcdef0123"], "echo|***"),
        (&["x", "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END"], "x|-----BEGIN RSA PRIVATE KEY-----***-----END"),
    ] {
        assert_eq!(shown(argv), want);
    }
}

/// What a reviewer has to see must not vanish behind the name of a secret.
#[test]
fn nothing_hides_behind_a_name() {
    for argv in [
        &["cat", "curl", "-u", "/etc/shadow"][..],
        &["cat", "--token", "/etc/shadow"],
        &["sh", "-c", "TOKEN=$(rm -rf /) x"],
        &["sh", "-c", "password=`rm -rf /`"],
        &["python3", "-c", "token=os.remove('/etc/passwd')"],
        &["curl", "--password-file", "/x", "--token-path", "/y"],
        &["grep", "-r", "password", "src"],
        &["grep", "token:", "f"],
        &["git", "commit", "-m", "add token support"],
        &["mysql", "--protocol", "tcp", "--port", "1"],
        &["ls", "-p", "x"],
        &["x", "PASSWORD=$PW", "--secret", "${S}"],
    ] {
        assert_eq!(shown(argv), argv.join("|"));
    }
    assert_eq!(shown(&["sh", "-c", "TOKEN=abc; rm -rf / # x"]), "sh|-c|TOKEN=***; rm -rf / # x");
    assert_eq!(shown(&["sh", "-c", "mysql -p\"$(rm -rf /)\" x"]), "sh|-c|mysql -p\"$(rm -rf /)\" x");
}

#[test]
fn what_was_masked_is_masked_wherever_it_stands() {
    let argv: Vec<Vec<u8>> = [&b"curl"[..], b"-u", b"bob:hunter2"].iter().map(|a| a.to_vec()).collect();
    let secrets = mask("curl", &argv).secrets;
    assert_eq!(mask_repeated("curl -u bob:hunter2 reads", &argv, &secrets), "curl -u bob:*** reads");
    assert_eq!(mask_text("for https://a:b@h"), "for https://a:***@h");
}

/// The file that runs counts, whatever the first argument says.
#[test]
fn a_program_is_known_by_its_file() {
    let argv: Vec<Vec<u8>> = [&b"x"[..], b"-phunter2"].iter().map(|a| a.to_vec()).collect();
    assert_eq!(mask("mysql", &argv).argv[1], b"-p***");
    assert_eq!(mask("ls", &argv).argv[1], b"-phunter2");
}

proptest! {
    #[test]
    fn garbage_never_panics_and_keeps_what_is_no_secret(
        argv in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..6)
    ) {
        let masked = mask("curl", &argv);
        prop_assert_eq!(masked.argv.len(), argv.len());
        for secret in &masked.secrets {
            prop_assert!(argv[secret.arg].len() >= secret.at.end);
        }
    }

    #[test]
    fn a_password_of_plain_characters_is_never_left(password in "[A-Za-z0-9+%]{8,40}") {
        for argv in [
            vec!["curl".to_owned(), "-u".into(), format!("u:{password}")],
            vec!["x".to_owned(), format!("--password={password}")],
            vec!["sh".to_owned(), "-c".into(), format!("export DB_PASSWORD={password} && mysql -p{password}")],
        ] {
            let text: Vec<&str> = argv.iter().map(String::as_str).collect();
            prop_assert!(!shown(&text).contains(&password), "{}", shown(&text));
        }
    }
}
