//! Checks the programs' output with other tools: codes with oathtool, QR pictures with zbarimg, and
//! the API description with an OpenAPI validator.

use std::fs;

use twofactor_core::otpauth;
use twofactor_core::qr::QrPicture;
use twofactor_core::seed::Seed;
use twofactor_core::time::UnixMillis;
use twofactor_core::totp::{Algorithm, Totp, TotpParameters};
use twofactor_tests::process::run;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::{scratch, tools};

use crate::support::world::random;

#[test]
fn codes_agree_with_oathtool() {
    for algorithm in [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512] {
        for (digits, period) in [(6, 30), (7, 60), (8, 15), (6, 120)] {
            for seconds in [59, 1_111_111_109, 1_798_000_000, 4_294_967_296 * 30 + 7] {
                let seed = Seed::generate(&mut random());
                let parameters = TotpParameters::new(algorithm, digits, period, 1).unwrap();
                let step = parameters.step_at(UnixMillis::from_seconds(seconds));
                let ours = Totp::new(&seed, parameters).code_of(step);
                let theirs = run(
                    tools::find("oathtool"),
                    &[
                        &format!("--totp={}", algorithm.name()),
                        "--base32",
                        &format!("--digits={digits}"),
                        &format!("--time-step-size={period}s"),
                        &format!("--now=@{seconds}"),
                        seed.to_base32().expose_secret(),
                    ],
                );
                assert_eq!(
                    ours.expose_secret(),
                    theirs.trim(),
                    "{} {digits} {period} {seconds}",
                    algorithm.name()
                );
            }
        }
    }
}

#[test]
fn a_qr_picture_is_read_back_by_zbarimg() {
    let folder = scratch::folder("qr");
    let seed = Seed::generate(&mut random());
    for (name, issuer) in
        [("alice", "FountainAI"), ("Zoë {admin} & co", "Fountain AI"), (&"x".repeat(200), "F")]
    {
        let uri = otpauth::uri(&name.parse().unwrap(), issuer, &seed, &TotpParameters::default());
        let path = folder.path().join("qr.png");
        fs::write(&path, QrPicture::encode(&uri).unwrap().png()).unwrap();
        let read = run(tools::find("zbarimg"), &["--quiet", "--raw", path.to_str().unwrap()]);
        assert_eq!(read.trim_end(), uri.expose_secret());
    }
}

async fn dev() -> SidecarProcess {
    let users = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    SidecarProcess::builder().args(["dev", users]).start().await
}

#[tokio::test]
async fn the_description_is_openapi_3_1_0_and_describes_every_status() {
    let sidecar = dev().await;
    let reply = sidecar.api().get("/openapi.json").await;
    let document = reply.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["title"], "FountainAI 2FA Service");
    assert_eq!(document["info"]["version"], "1.0.0");
    let statuses = |path: &str, method: &str| -> Vec<String> {
        document["paths"][path][method]["responses"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(
        statuses("/auth/generate", "post"),
        ["200", "400", "403", "404", "405", "408", "413", "422", "429", "502", "503"]
    );
    assert_eq!(
        statuses("/auth/verify", "post"),
        ["200", "400", "401", "403", "404", "405", "408", "413", "422", "429", "503"]
    );
    let folder = scratch::folder("openapi");
    let path = folder.path().join("openapi.json");
    fs::write(&path, &reply.body).unwrap();
    let verdict =
        run(tools::find("openapi-spec-validator"), &["--schema", "3.1", path.to_str().unwrap()]);
    assert!(verdict.contains("OK"), "{verdict}");
}

#[tokio::test]
async fn the_page_that_describes_the_api_needs_nothing_from_elsewhere() {
    let sidecar = dev().await;
    for path in ["/docs", "/docs/"] {
        let page = sidecar.api().get(path).await;
        assert_eq!(page.status, 200);
        assert!(page.header("content-type").unwrap().starts_with("text/html"));
        assert!(page.header("content-security-policy").unwrap().contains("default-src 'self'"));
        assert!(!page.body.contains("http://") && !page.body.contains("https://"), "{}", page.body);
        for quoted in page.body.split('"').filter(|part| part.starts_with("/docs/")) {
            let file = sidecar.api().get(quoted).await;
            assert_eq!(file.status, 200, "{quoted}");
            assert!(!file.body.is_empty());
        }
    }
    assert_eq!(sidecar.api().get("/docs/../../etc/passwd").await.status, 404);
    assert_eq!(sidecar.api().get("/docs/nothing.js").await.status, 404);
}
