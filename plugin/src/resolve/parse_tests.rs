use super::*;

fn object(kind: Option<ObjectKind>, name: &str, port: Option<&str>) -> EndSpec {
    EndSpec::Object {
        kind,
        name: name.to_owned(),
        port: port.map(|p| parse_port(p).unwrap()),
    }
}

#[test]
fn names_with_and_without_kind_and_port() {
    assert_eq!(parse("web-0").unwrap(), object(None, "web-0", None));
    assert_eq!(
        parse("pod/web-0").unwrap(),
        object(Some(ObjectKind::Pod), "web-0", None)
    );
    assert_eq!(
        parse("svc/api:http").unwrap(),
        object(Some(ObjectKind::Service), "api", Some("http"))
    );
    assert_eq!(
        parse("api.shop:80").unwrap(),
        object(None, "api.shop", Some("80"))
    );
    assert_eq!(
        parse("deploy/api").unwrap(),
        object(Some(ObjectKind::Deployment), "api", None)
    );
    assert_eq!(
        parse("sts/db.data").unwrap(),
        object(Some(ObjectKind::StatefulSet), "db.data", None)
    );
    assert_eq!(
        parse("ds/agent").unwrap(),
        object(Some(ObjectKind::DaemonSet), "agent", None)
    );
    assert_eq!(
        parse("rs/api-5d").unwrap(),
        object(Some(ObjectKind::ReplicaSet), "api-5d", None)
    );
    assert_eq!(
        parse("node/worker-1").unwrap(),
        object(Some(ObjectKind::Node), "worker-1", None)
    );
    assert_eq!(
        parse("Deployment/api").unwrap(),
        object(Some(ObjectKind::Deployment), "api", None),
        "kubectl takes kinds in any case"
    );
}

#[test]
fn addresses() {
    let v4 = |port: Option<&str>| EndSpec::Address {
        ip: "10.96.0.10".parse().unwrap(),
        port: port.map(|p| parse_port(p).unwrap()),
    };
    assert_eq!(parse("10.96.0.10").unwrap(), v4(None));
    assert_eq!(parse("10.96.0.10:53").unwrap(), v4(Some("53")));
    assert_eq!(parse("10.96.0.10:dns").unwrap(), v4(Some("dns")));
    let v6 = |port: Option<&str>| EndSpec::Address {
        ip: "fd00::1".parse().unwrap(),
        port: port.map(|p| parse_port(p).unwrap()),
    };
    assert_eq!(parse("fd00::1").unwrap(), v6(None));
    assert_eq!(parse("[fd00::1]").unwrap(), v6(None));
    assert_eq!(parse("[fd00::1]:80").unwrap(), v6(Some("80")));
}

#[test]
fn urls() {
    let url = |host: &str, port: u16| EndSpec::Url {
        host: host.to_owned(),
        port: NonZeroU16::new(port).unwrap(),
    };
    assert_eq!(
        parse("http://api.shop:8080/v1/x?y=1").unwrap(),
        url("api.shop", 8080)
    );
    assert_eq!(parse("https://api.shop").unwrap(), url("api.shop", 443));
    assert_eq!(parse("http://u:p@10.0.0.1/").unwrap(), url("10.0.0.1", 80));
    assert_eq!(parse("http://[fd00::1]:81/").unwrap(), url("fd00::1", 81));
    for bad in [
        "ftp://x",
        "http://",
        "http://x:0",
        "http://x:99999",
        "http://[::1",
        "http://[zz]",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn local_ends() {
    assert_eq!(
        parse_local("netns/net0").unwrap(),
        EndSpec::Netns {
            name: "net0".to_owned(),
            port: None
        }
    );
    assert_eq!(
        parse_local("pid/12:80").unwrap(),
        EndSpec::Pid {
            pid: 12,
            port: Some(parse_port("80").unwrap())
        }
    );
    assert_eq!(parse_local("host").unwrap(), EndSpec::Host { port: None });
    assert!(matches!(
        parse_local("10.0.1.3").unwrap(),
        EndSpec::Address { .. }
    ));
    for bad in [
        "web-0",
        "pid/0",
        "pid/x",
        "netns/../x",
        "svc/api",
        "netns/..",
    ] {
        assert!(parse_local(bad).is_err(), "{bad}");
    }
    assert!(
        parse("netns/x")
            .unwrap_err()
            .to_string()
            .contains("--local")
    );
}

#[test]
fn slips_are_named() {
    let why = |text: &str| parse(text).unwrap_err().to_string();
    assert!(why("").contains("empty"));
    assert!(why("a b").contains("white space"));
    assert!(why("api:").contains("missing"));
    assert!(why("api:0").contains("out of range"));
    assert!(why("api:70000").contains("out of range"));
    assert!(why("api:HTTP").contains("port name"));
    assert!(why("Foo/api").contains("unknown type"));
    assert!(why("pod/").contains("name is missing"));
    assert!(why("pod/a/b").contains("slashes"));
    assert!(why("Web").contains("upper-case"));
    assert!(why("10.0.0.256").contains("not an IPv4 address"));
    assert!(why("fd00::zz:1").contains("IPv6"));
    assert!(why("[fd00::1").contains("bracket"));
    assert!(why("[fd00::1]x").contains("not a port"));
}

#[test]
fn dotted_names_have_several_readings() {
    let read = |text: &str| {
        readings(text)
            .into_iter()
            .map(|r| (r.name, r.namespace, r.implies))
            .collect::<Vec<_>>()
    };
    assert_eq!(read("api"), [("api".to_owned(), None, None)]);
    assert_eq!(
        read("api.shop"),
        [
            ("api".to_owned(), Some("shop".to_owned()), None),
            ("api.shop".to_owned(), None, None)
        ]
    );
    assert_eq!(
        read("api.shop.svc.cluster.local")[0],
        (
            "api".to_owned(),
            Some("shop".to_owned()),
            Some(ObjectKind::Service)
        )
    );
    assert_eq!(
        read("web-0.web.shop.svc")[0],
        (
            "web-0".to_owned(),
            Some("shop".to_owned()),
            Some(ObjectKind::Pod)
        )
    );
}

#[test]
fn nothing_typed_can_panic() {
    for text in [
        "/", ":", "[", "]", "[]", "[]:", "://", "a://", ".", "..", "svc/.:1", "é", "a.é:1",
        "[::]:", "-",
    ] {
        let _ = parse(text);
        let _ = parse_local(text);
        let _ = readings(text);
    }
}

#[test]
fn what_is_no_type_before_the_slash_is_a_namespace() {
    let object = |text: &str| match parse(text).unwrap() {
        EndSpec::Object { kind, name, .. } => (kind, name),
        other => panic!("{other:?}"),
    };
    assert_eq!(object("shop/web-0"), (None, "web-0.shop".to_owned()));
    assert_eq!(
        object("node/web-0"),
        (Some(ObjectKind::Node), "web-0".to_owned())
    );
    assert_eq!(
        parse("shop/api:http").unwrap().port(),
        Some(PortSpec::Name("http".to_owned()))
    );
    assert!(parse("a.b/web-0").is_err());
    assert!(parse("shop/pod/web-0").is_err());
}

#[test]
fn any_address_is_nobodys() {
    for text in ["0.0.0.0", "0.0.0.0:80", "::", "[::]:80", "http://0.0.0.0/"] {
        for parsed in [parse(text), parse_local(text)] {
            let error = parsed.unwrap_err().to_string();
            assert!(
                error.contains("or 127.0.0.1 for") || error.contains("or ::1 for"),
                "{error}"
            );
        }
    }
}
