//! The page of `compare --export-html` in a real browser, which is driven through a pipe: the DevTools protocol, JSON
//! ended by zero bytes (`--remote-debugging-pipe`). The figures are those of a short run.

use crate::server::{bin, run};
use crate::{Check, Needs, check};
use echo_lab::catalog::Row;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

pub fn checks(row: &Row) -> Vec<Check> {
    let table: &[(&str, fn())] = match row.name {
        "compare" => &[
            ("page_is_whole", whole),
            ("page_by_keyboard", keyboard),
            ("page_on_a_narrow_screen", narrow),
            ("page_in_the_dark", dark),
            ("page_without_javascript", without_javascript),
        ],
        _ => &[],
    };
    table.iter().map(|(name, run)| check(*name, Needs::Chromium, move |_| run())).collect()
}

/// A name that would be markup if it were not escaped.
const PEER: &str = "<b>&\"peer</script>";

static PAGE: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("echo-lab-{}.html", std::process::id()));
    let peer = format!("{PEER}={} --bind {{addr}}", bin("echo-blocking").display());
    let flags = ["--quick", "echo-epoll-edge", "echo-tokio", "--peer", &peer, "--sweep", "window"];
    let (status, _, stderr) = run("compare", &[&flags[..], &["--export-html", path.to_str().unwrap()]].concat());
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    path
});

/// A browser with one tab. Dropped, it is killed.
struct Browser {
    profile: PathBuf,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Value,
    number: u64,
    errors: Vec<Value>,
}

impl Browser {
    /// With the page loaded.
    fn open(prepare: &[(&str, Value)]) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let profile = std::env::temp_dir().join(format!("echo-lab-chromium-{}-{number}", std::process::id()));
        // It speaks on descriptors 3 and 4.
        let command = "exec chromium --headless --no-sandbox --disable-gpu --disable-background-networking \
                       --remote-debugging-pipe --user-data-dir=\"$0\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut command_line = Command::new("sh");
        command_line.args(["-c", command]).arg(&profile).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command_line.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser = Self { profile, child, to, from, session: Value::Null, number: 0, errors: Vec::new() };
        let tab = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": tab["targetId"], "flatten": true});
        browser.session = browser.call("Target.attachToTarget", attach)["sessionId"].clone();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({}));
        }
        prepare.iter().for_each(|(method, parameters)| drop(browser.call(method, parameters.clone())));
        browser.call("Page.navigate", json!({"url": format!("file://{}", PAGE.display())}));
        while browser.message()["method"] != "Page.loadEventFired" {}
        browser
    }

    /// What a method of the protocol gives.
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": parameters});
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        write!(self.to, "{message}\0").unwrap();
        loop {
            let answer = self.message();
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    fn message(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        bytes.pop().expect("a message: the browser has ended");
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        let error = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => message["params"]["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => message["params"]["type"] == "error",
            _ => false,
        };
        if error {
            self.errors.push(message.clone());
        }
        message
    }

    /// The value of an expression in the page.
    fn eval(&mut self, expression: &str) -> Value {
        let result = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    fn press(&mut self, key: &str, code: &str, number: u32) {
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number});
            self.call("Input.dispatchKeyEvent", event);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

const NAMES: &str = "[...document.querySelectorAll('.server')].filter(it => it.checkVisibility())\
                     .map(it => it.querySelector('h3').textContent).sort()";

fn whole() {
    let text = std::fs::read_to_string(&*PAGE).unwrap();
    assert!(!text.contains("src=") && !text.contains("<link") && !text.contains("@import"), "it needs other files");
    let mut browser = Browser::open(&[]);
    assert_eq!(browser.errors, [Value::Null; 0]);
    let headings = browser.eval("[...document.querySelectorAll('h2')].map(it => it.id)");
    assert_eq!(headings, json!(["summary", "cpu", "eps", "latency", "calls", "sweeps", "beside", "how"]));
    // Four servers, one of them the peer, in the figures and in each of the four charts.
    assert_eq!(browser.eval("document.querySelectorAll('section:not(#sweeps) > table > tbody > tr').length"), 16);
    let names = browser.eval("[...document.querySelectorAll('#cpu ~ table th[scope=row]')].map(it => it.textContent)");
    assert!(names.as_array().unwrap().contains(&PEER.into()), "{names}");
    // Every mark is inside its chart.
    let places = "[...document.querySelectorAll('.chart line')].map(it => +it.getAttribute('x1'))";
    assert_eq!(browser.eval(&format!("{places}.length > 50 && {places}.every(x => x >= 0 && x <= 100)")), true);
    let curves = browser.eval("[...document.querySelectorAll('.curves polyline')].map(it => it.points.length)");
    assert_eq!(curves, json!([5, 5, 5, 5]));
    assert_eq!(browser.eval("[...document.querySelectorAll('svg')].every(it => it.querySelector('title'))"), true);
}

fn keyboard() {
    let mut browser = Browser::open(&[]);
    assert_eq!(browser.eval(&format!("{NAMES}.length")), 2);
    let boxes = "[...document.querySelectorAll('.choose input')]";
    let third = "document.querySelectorAll('.choose input')[2]";
    for _ in 0..100 {
        if browser.eval(&format!("document.activeElement === {third}")) == true {
            break;
        }
        browser.press("Tab", "Tab", 9);
    }
    assert_eq!(browser.eval("getComputedStyle(document.activeElement).outlineStyle"), "solid");
    browser.press(" ", "Space", 32);
    assert_eq!(browser.eval(&format!("{third}.checked")), true);
    assert_eq!(browser.eval(&format!("{NAMES}.length")), 3);
    assert_eq!(browser.eval(&format!("{boxes}.map(it => it.disabled)")), json!([false, false, false, true]));
    assert_eq!(browser.eval("document.querySelector('#chosen').textContent.startsWith('3 chosen')"), true);
    let chosen = browser.eval(NAMES);
    for name in chosen.as_array().unwrap().iter().filter_map(Value::as_str).filter(|name| *name != PEER) {
        let server = format!("document.querySelector('.server[aria-label={name}]')");
        let source =
            browser.eval(&format!("{server}.querySelector('.source pre').checkVisibility() && {server}.innerText"));
        let source = source.as_str().unwrap();
        assert!(source.contains("fn main() -> Result<()>") && source.contains("recvfrom(UDP, \"echo\""), "{source}");
        assert!(source.contains("echoes/s"), "{source}");
    }
    assert_eq!(browser.errors, [Value::Null; 0]);
}

fn narrow() {
    let mut browser = Browser::open(&[(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": true}),
    )]);
    assert_eq!(browser.eval("document.documentElement.scrollWidth"), 360);
    let names = "[...document.querySelectorAll('.chart tbody th, .scroll tbody th')].map(it => it.offsetWidth)";
    assert!(
        browser.eval(names).as_array().unwrap().iter().all(|width| width.as_u64() > Some(80)),
        "names are squeezed"
    );
    let sides = "[...document.querySelectorAll('.server')].filter(it => it.checkVisibility()).map(it => it.offsetLeft)";
    let sides = browser.eval(sides);
    assert_eq!(sides[0], sides[1], "one below the other");
}

fn dark() {
    let mut colours = ["light", "dark"].map(|scheme| {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        let mut browser = Browser::open(&[("Emulation.setEmulatedMedia", feature)]);
        browser.eval("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    });
    assert_eq!((&colours[0][0], &colours[1][0]), (&"rgb(255, 255, 255)".into(), &"rgb(20, 24, 29)".into()));
    let lightest = colours[1][1].take();
    assert_eq!(lightest, "rgb(230, 233, 238)");
}

fn without_javascript() {
    let mut browser = Browser::open(&[("Emulation.setScriptExecutionDisabled", json!({"value": true}))]);
    assert_eq!(browser.eval(&format!("{NAMES}.length")), 4);
    assert_eq!(browser.eval("document.querySelector('.choose').checkVisibility()"), false);
    assert_eq!(browser.eval("document.querySelectorAll('.server .source summary').length"), 3);
    assert_eq!(browser.eval("document.querySelectorAll('.chart svg').length"), 12);
    assert_eq!(browser.eval("document.querySelector('noscript p').checkVisibility()"), true);
}
