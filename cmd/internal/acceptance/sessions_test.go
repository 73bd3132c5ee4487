package acceptance_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stint-dev/stint/plugins/servertest"
)

// A person's whole session: what each command tells is what the examples of the design tell.
func TestSession(t *testing.T) {
	t.Parallel()
	d := &dev{dir: t.TempDir()}
	vaults := vaultFolder(t)
	d.launch(t, nil, "PATH="+vaults+":/usr/bin:/bin", "VAULT_ADDR=http://127.0.0.1:1")
	shows(t, d.stdout.String(),
		`^Stint \S+  DEVELOPMENT MODE: who can open a socket below is that agent\. Keys lie unencrypted\. Not for production\.$`,
		`^  broker +127\.0\.0\.1:\d+ +spiffe://dev\.stint\.local/stint +status +http://127\.0\.0\.1:\d+/readyz$`,
		`^  data +`+d.dir+`/\.stint  \(fresh; .stintd dev --reset. starts over\)$`,
		`^  backends +stepca/dev +embedded CA, CRL at http://127\.0\.0\.1:\d+/crl\.pem$`,
		`^ +vault/dev +started `+vaults+`/vault -dev on 127\.0\.0\.1:\d+ +\(VAULT_ADDR is set and was NOT touched; --vault-addr uses it\)$`,
		`^  identities +agent, agent2, operator +/.*/<name>\.sock$`,
		`^  source `+d.dir+`/\.stint/env +# STINT_ADDR, STINT_SERVER_ID, SPIFFE_ENDPOINT_SOCKET of "agent"$`,
		`^  stint whoami +# who am I, what may I ask for$`,
		`^  stint run --purpose try-it --role web-client -- `,
		`^  stint run --purpose try-it --role payroll-db -- true +# denied, and why$`,
		`^Ready in \d+\.\d s\. Ctrl-C ends every task, then stops\.$`)
	tryTheBanner(t, d)

	task := d.declare(t, "build-host", "web-client")
	d.stint(t, "credential", "issue", "--task", task, "--role", "build-host", "--param", "ip=10.0.0.7", "--out", "otp").exits(t, 0)
	d.stint(t, "credential", "issue", "--task", task, "--role", "web-client", "--out", "certs").exits(t, 0)
	shows(t, d.stint(t, "task", "get", task).exits(t, 0).stdout,
		`^Task +`+task+`  \([0-9a-f-]{36}\)    State  ACTIVE, ends in \d+m\d*s? \(\d\d:\d\d:\d\dZ\)$`,
		`^Agent +spiffe://dev\.stint\.local/agent/agent · profile dev-agent .*· sponsor your-lead@dev\.stint\.local$`,
		`^Manifest +sha256:[0-9a-f]{64}    Last seen  \d+s ago \(closes 5m after the last\)$`,
		`^Decision +allowed by profile/dev-agent, policy set [0-9a-f…]+   audit \d+$`,
		`^Exposure +\d+m\d+s for services that read the CRL, else web-client until \d\d:\d\d:\d\dZ$`)
	shows(t, d.stint(t, "lease", "list", "--task", task).exits(t, 0).stdout,
		`^LEASE +ROLE +BACKEND +STATE +EXPIRES +EXPOSURE +REF$`,
		`^[0-9A-F]{32}  build-host +vault/dev +ACTIVE +[0-9ms]+ +[0-9ms]+`,
		`^[0-9A-F]{32}  web-client +stepca/dev +ACTIVE +[0-9ms]+ +[0-9ms]+\* +CN=agent +\* without CRL: [0-9ms]+$`)
	shows(t, d.stint(t, "task", "complete", task).exits(t, 0).stdout,
		`^build-host  vault/dev   REVOKED in .*  Vault: invalid lease; token gone, \d\d:\d\d:\d\d\.\d{3}Z$`,
		`^web-client  stepca/dev  REVOKED in .*  CRL \d+.* \d\d:\d\d:\d\d\.\d{3}Z; services that read no CRL accept it until \d\d:\d\d:\d\dZ$`,
		`^CLOSED \(completed\) after \d+.*: 1 revoked and read back, 1 .*(?i:crl).*, 0 disclosed, 0 stuck · audit \d+-\d+ · stint audit receipt `+task+`$`)
	refusals(t, d, task)

	// Ctrl-C ends every task, then stops.
	d.declare(t, "web-client")
	d.signal(t, syscall.SIGINT)
	shows(t, d.wait(t).exits(t, 0).stdout, `Ending every task`, `^Stopped: no task is open\.$`)
	d.launch(t, nil, "PATH="+vaults+":/usr/bin:/bin")
	shows(t, d.stdout.String(), `kept from last time; .stintd dev --reset. starts over`)
	shows(t, d.stint(t, "task", "list").exits(t, 0).stdout, `^try-it-.* CLOSED \(`)
	if open := d.stint(t, "lease", "list", "--state", "active").exits(t, 0).stdout; strings.Contains(open, "ACTIVE") {
		t.Errorf("leases are left: %s", open)
	}
	again := []string{program(t, "stintd"), "dev", "--no-vault", "--listen", servertest.FreeAddress(t), "--http", servertest.FreeAddress(t)}
	beside := run(t, call{args: append(again, "--reset"), dir: d.dir, env: d.plain()}).exits(t, 1)
	shows(t, beside.stderr, `in use`)
	d.stint(t, "task", "get", task).exits(t, 0)
	d.signal(t, syscall.SIGTERM)
	d.wait(t).exits(t, 0)

	// Without the Vault that its resources name it does not start, and says what to type.
	without := run(t, call{args: again, dir: d.dir, env: d.plain()}).exits(t, 1)
	shows(t, without.stderr, `vault/dev`, `--reset`)
}

// A broker that cannot prove an end, since the Vault that issued went away with a killed process, says so when it stops.
func TestStopSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	d := &dev{dir: t.TempDir()}
	env := []string{"PATH=" + vaultFolder(t) + ":/usr/bin:/bin", "TMPDIR=" + t.TempDir()} // for what a killed one leaves
	d.launch(t, nil, env...)
	task := d.declare(t, "build-host")
	d.stint(t, "credential", "issue", "--task", task, "--role", "build-host", "--param", "ip=10.0.0.7", "--out", "otp").exits(t, 0)
	d.signal(t, syscall.SIGKILL)
	d.wait(t)
	d.launch(t, nil, env...)
	d.signal(t, syscall.SIGTERM)
	left := d.wait(t).exits(t, 1)
	shows(t, left.stderr, `^stintd: 1 tasks? (is|are) not proven ended; .stintd dev. with the same --data-dir goes on with (it|them)$`)
}

// tryTheBanner types what it says.
func tryTheBanner(tb testing.TB, d *dev) {
	tb.Helper()
	_, lines, _ := strings.Cut(d.stdout.String(), "Try, in another terminal:\n")
	var commands []command
	for line := range strings.Lines(lines) {
		text, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "  ")
		if !ok {
			break
		}
		c := command{text: text}
		if strings.Contains(text, "# denied") {
			c.code = 4
		}
		commands = append(commands, c)
	}
	if len(commands) != 4 {
		tb.Errorf("the banner has %d commands", len(commands))
	}
	d.sh(tb, script(commands)).exits(tb, 0)
}

// refusals says what happened, what was found, and what to type.
func refusals(tb testing.TB, d *dev, closed string) {
	tb.Helper()
	denied := d.stint(tb, "task", "declare", "--purpose", "try-it", "--role", "payroll-db", "--ttl", "8h").exits(tb, 4)
	shows(tb, denied.stderr,
		`^denied: ROLE_OUTSIDE_PROFILE payroll-db; profile dev-agent allows build-host, web-client, web-server\. Nothing was created\.$`,
		`^note:   ttl 8h would become 1h \(profile dev-agent\)$`,
		`^next:   .*stint roles.*$`, `ask the owner, you@dev\.stint\.local`, `request [0-9a-f-]{36}, audit record \d+$`)
	shows(tb, d.stint(tb, "task", "declare", "--purpose", "try-it", "--ttl", "8h", "--dry-run").exits(tb, 0).stderr,
		`^note:   ttl 8h became 1h \(profile dev-agent\)$`)
	shows(tb, d.stint(tb, "credential", "issue", "--task", closed, "--role", "web-client", "--out", "certs").exits(tb, 6).stderr,
		`^ended: TASK_CLOSED `, `^next:   stint task declare --from `+closed+` · request `)
	shows(tb, d.stintAs(tb, "agent2", "task", "get", closed).exits(tb, 3).stderr, `^not found: NOT_FOUND `)
	noSocket := run(tb, call{args: []string{program(tb, "stint"), "whoami", "--addr", d.variable("STINT_ADDR")}, env: d.plain(), dir: d.dir})
	shows(tb, noSocket.exits(tb, 2).stderr,
		`SPIFFE_ENDPOINT_SOCKET is not set \(SPIRE: unix:///run/spire/sockets/agent\.sock; dev: source \.stint/env\)$`)
	// The admin socket works beside, and names who is there by uid.
	local := run(tb, call{args: []string{program(tb, "stint"), "whoami", "--admin-socket", d.admin}, env: d.plain(), dir: d.dir})
	shows(tb, local.exits(tb, 0).stdout, `local:uid:\d+`)
}

// What does not validate is refused whole, each fault once, with file and line.
func TestFaultsOfResources(t *testing.T) {
	t.Parallel()
	d := startDev(t, []string{"--no-vault"})
	write(t, d.dir+"/bad.yaml", []byte("apiVersion: stint.dev/v1\nkind: Role\nmetadata: {name: x}\nspec:\n  bakend: stepca/dev\n"))
	refused := d.stintAs(t, "operator", "apply", "-f", "bad.yaml").exits(t, 2)
	shows(t, refused.stderr, `^invalid: RESOURCE_INVALID bad\.yaml:5: `, `bad\.yaml:5: unknown key spec\.bakend; did you mean backend\?$`)
	for _, fault := range []string{"did you mean backend", "spec.backend is missing", "spec.ttl is missing"} {
		if n := strings.Count(refused.stderr, fault); n != 1 {
			t.Errorf("%q is said %d times: %s", fault, n, refused)
		}
	}
}

// vaultFolder returns a folder with a program "vault" in it, as a person has one on PATH.
func vaultFolder(tb testing.TB) string {
	tb.Helper()
	servers.Vault(tb) // or the test ends here
	for _, candidate := range []string{os.Getenv("VAULT_BIN"), "../../../.bin/vault", "vault"} {
		found, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		if found, err = filepath.Abs(found); err != nil {
			tb.Fatal(err)
		}
		dir := tb.TempDir()
		if err := os.Symlink(found, dir+"/vault"); err != nil {
			tb.Fatal(err)
		}
		return dir
	}
	tb.Fatal("no vault, though one was started")
	return ""
}

// What `make demo` runs, with and without words. Exit status 0 only if every step did what it says.
func TestDemo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := []string{"HOME=" + dir, "GORACE=atexit_sleep_ms=0", "PATH=" + vaultFolder(t) + ":/usr/bin:/bin"}
	told := run(t, call{args: []string{program(t, "stintd"), "demo"}, dir: dir, env: env}).exits(t, 0)
	if len(strings.Split(told.stdout, "\n")) < 10 {
		t.Errorf("the story is short: %s", told)
	}
	steps := 0
	for line := range strings.Lines(run(t, call{args: []string{program(t, "stintd"), "demo", "--json"}, dir: dir, env: env}).exits(t, 0).stdout) {
		var step map[string]any
		if err := json.Unmarshal([]byte(line), &step); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		steps++
	}
	if steps < 8 {
		t.Errorf("only %d steps", steps)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("the demo leaves %v behind: %v", left, err)
	}
}
