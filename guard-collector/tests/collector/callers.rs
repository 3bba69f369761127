//! Nobody without a certificate of this CA, and nobody beyond their role.

use guard_collector::identity::{Caller, Role};
use guard_collector::pki::{Authority, CLIENT_TTL};
use guard_proto::v1::control_service_client::ControlServiceClient;
use guard_proto::v1::*;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tonic::{Code, Status};

use crate::host::{Host, Ship};
use crate::world::{World, command};

fn ca(world: &World) -> ClientTlsConfig {
    let ca = std::fs::read(world.path("c/ca/ca.pem")).expect("CA");
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("localhost")
}

/// With TLS 1.3 a client learns that it was refused at connection or at its first call.
async fn answered(world: &World, tls: ClientTlsConfig) -> bool {
    match world.endpoint(tls).connect().await {
        Err(_) => false,
        Ok(channel) => ControlServiceClient::new(channel).who_am_i(WhoAmIRequest {}).await.is_ok(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_and_strange_clients_are_refused() {
    let world = World::new();
    assert!(!answered(&world, ca(&world)).await, "no certificate");
    let (strange, _) = Authority::create("strange").expect("CA");
    let forged = strange.client(&Caller { name: "admin".into(), role: Role::Admin }, CLIENT_TTL).expect("issued");
    assert!(!answered(&world, ca(&world).identity(Identity::from_pem(forged.cert, forged.key))).await, "another CA");
    let server = |name: &str| std::fs::read(world.path("c/server").join(name)).expect("server's");
    let roleless = Identity::from_pem(server("cert.pem"), server("key.pem"));
    assert!(!answered(&world, ca(&world).identity(roleless)).await, "a certificate without a role");
    let admin = |name: &str| std::fs::read(world.path("c/clients/admin").join(name)).expect("admin's");
    assert!(answered(&world, ca(&world).identity(Identity::from_pem(admin("cert.pem"), admin("key.pem")))).await);
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.err().expect("refused").code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_gets_its_own_calls_only() {
    let world = World::new();
    let mut vera = world.control("vera").await;
    let me = vera.who_am_i(WhoAmIRequest {}).await.expect("answer").into_inner();
    assert_eq!((me.name.as_str(), me.roles.as_slice()), ("vera", ["viewer".to_owned()].as_slice()));
    assert_eq!(code(vera.decide(DecideRequest::default()).await), Code::PermissionDenied);
    let mut node = world.control("node-box").await;
    assert_eq!(code(node.status(StatusRequest {}).await), Code::PermissionDenied);
    assert_eq!(code(node.decide(DecideRequest::default()).await), Code::PermissionDenied);
    assert_eq!(code(node.read_log(ReadLogRequest { path: "checkpoint".into() }).await), Code::PermissionDenied);
    assert_eq!(code(node.tail(TailRequest::default()).await), Code::PermissionDenied);
    let mut host = Host::new();
    host.fill(1);
    for name in ["admin", "bob", "vera"] {
        let mut client = world.node(name).await;
        assert_eq!(code(Ship::open(&client, host.hello()).await), Code::PermissionDenied);
        let decisions = DecisionsRequest { host: host.id.0.to_vec() };
        assert_eq!(code(client.decisions(decisions).await), Code::PermissionDenied);
        let report = NodeReport { host: host.id.0.to_vec(), ..NodeReport::default() };
        assert_eq!(code(client.report(report).await), Code::PermissionDenied);
    }
    assert_eq!(world.findings().await, []);
}

#[test]
fn commands_refuse_what_they_would_overwrite() {
    let world = World::stopped();
    let text = |name: &str| world.path(name).to_str().expect("UTF-8").to_owned();
    assert_eq!(command(&["init", "--dir", &text("c")]).status.code(), Some(64));
    let again = ["client", "--dir", &text("c"), "--name", "bob", "--role", "admin", "--out", &text("c/clients/bob")];
    assert_eq!(command(&again).status.code(), Some(64));
    let role = ["client", "--dir", &text("c"), "--name", "x", "--role", "king", "--out", &text("x")];
    assert_eq!(command(&role).status.code(), Some(64));
    world.edit_config("[review]", "[review]\nspeed = 1");
    let served = command(&["serve", "--config", &text("c/collector.toml")]);
    let said = String::from_utf8_lossy(&served.stderr).into_owned();
    assert_eq!(served.status.code(), Some(78));
    assert!(said.contains("collector.toml") && said.contains("speed"), "{said}");
    assert_eq!(command(&["serve", "--config", &text("none.toml")]).status.code(), Some(78));
}

#[test]
fn keys_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::stopped();
    let mode = |name: &str| std::fs::metadata(world.path(name)).expect("there").permissions().mode() & 0o777;
    for key in ["c/ca/key.pem", "c/server/key.pem", "c/keys/log.skey", "c/clients/admin/key.pem"] {
        assert_eq!(mode(key), 0o600, "{key}");
    }
    for folder in ["c", "c/ca", "c/keys", "c/clients/node-box"] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
}
