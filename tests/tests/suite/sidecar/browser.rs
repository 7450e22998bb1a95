//! Tests the page at `/docs` in a real browser that can reach only the sidecar: it is rendered, and
//! an operation can be tried on it.

use serde_json::json;
use twofactor_tests::browser::Browser;

/// Tries an operation with a body by clicks, and returns the status and the answer that the page
/// shows.
fn try_it(browser: &mut Browser, operation: &str, body: &str) -> (String, String) {
    let part = |selector: &str| format!("document.querySelector('[id$={operation}] {selector}')");
    let clicked = |selector: &str| format!("({}.click(), true)", part(selector));
    browser.wait_for(&clicked(".opblock-summary-control"));
    browser.wait_for(&clicked(".try-out__btn"));
    let area = part("textarea.body-param__text");
    browser.wait_for(&format!("{area} !== null"));
    // The page handles this event as it handles typing.
    browser.evaluate(&format!(
        "(() => {{ const area = {area};
           Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(area, {});
           for (const kind of ['input', 'change']) area.dispatchEvent(new Event(kind, {{ bubbles: true }})); }})()",
        json!(body)
    ));
    browser.wait_for(&clicked(".btn.execute"));
    let answer = part(".live-responses-table .response");
    let mut shown = |column: &str| {
        let text = browser.wait_for(&format!("{answer}.querySelector('{column}').innerText"));
        text.as_str().expect("a text").to_owned()
    };
    (shown(".response-col_status"), shown(".response-col_description .highlight-code"))
}

#[test]
fn the_page_is_rendered_without_a_network_and_trying_it_verifies_a_code() {
    let users = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut browser = Browser::start(&["dev", users]);
    browser.open("/docs");
    browser.wait_for("document.querySelectorAll('.opblock').length >= 3");
    let title = browser.evaluate("document.querySelector('.info .title').innerText");
    assert!(
        title.as_str().is_some_and(|title| title.contains("FountainAI 2FA Service")),
        "{title}"
    );

    let (status, answer) = try_it(&mut browser, "generateOtp", r#"{"username":"alice"}"#);
    assert_eq!(status, "200", "{answer}");
    let code: String = answer
        .split_once("\"otp_code\"")
        .map(|(_, rest)| {
            rest.chars()
                .skip_while(|c| !c.is_ascii_digit())
                .take_while(char::is_ascii_digit)
                .collect()
        })
        .unwrap_or_default();
    let body = json!({ "username": "alice", "otp_code": code }).to_string();
    let (status, answer) = try_it(&mut browser, "verifyOtp", &body);
    assert_eq!(status, "200", "{answer}");
    assert!(answer.contains("\"success\": true"), "{answer}");

    let (urls, wrong) = browser.asked_for();
    let elsewhere: Vec<_> = urls
        .iter()
        .filter(|url| !url.starts_with("http://127.0.0.1:8004/") && !url.starts_with("data:"))
        .collect();
    assert!(urls.len() > 5 && elsewhere.is_empty(), "asked for {urls:?}");
    assert!(wrong.is_empty(), "{wrong:?}");
}
