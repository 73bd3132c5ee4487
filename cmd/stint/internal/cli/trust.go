package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	"github.com/stint-dev/stint/sdk/agent"
)

const maxTrust = 32 << 20 // a CRL of half a million entries

func (a *app) trust() *cobra.Command {
	cmd := &cobra.Command{Use: "trust", Short: "Fetch what services need to trust issued certificates", Args: cobra.NoArgs, RunE: needsCommand}
	cmd.AddCommand(
		a.trustFile("bundle", "Print the CA certificates of the task trust domain as PEM", "/bundle.pem", checkBundle),
		a.trustFile("crl", "Print the certificate revocation list as PEM", "/crl.pem", checkCRL),
	)
	return cmd
}

// trustFile fetches a file from the port without authentication and prints it once it is known to be what it should.
func (a *app) trustFile(name, short, path string, check func([]byte) (string, error)) *cobra.Command {
	var base string
	cmd := &cobra.Command{
		Use: name, Short: short, Args: cobra.NoArgs,
		Long: short + ". It comes over plain HTTP without authentication: check a bundle against\n" +
			"the fingerprint that your operator gives you.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if base == "" {
				return usage("say where: --http or %s (http://host:port of the broker's status port)", envHTTPAddr)
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			body, err := fetch(ctx, base, path)
			if err != nil {
				return err
			}
			about, err := check(body)
			if err != nil {
				return fmt.Errorf("%s%s: %w", base, path, err)
			}
			a.sayf("%s", about)
			format, data := a.format()
			if !data {
				_, err = a.stdout.Write(body)
				return err
			}
			return render.Write(a.stdout, format, struct {
				PEM string `json:"pem"`
			}{string(body)})
		},
	}
	cmd.Flags().StringVar(&base, "http", os.Getenv(envHTTPAddr), "the broker's status port, http://host:port ($"+envHTTPAddr+")")
	return cmd
}

func fetch(ctx context.Context, base, path string) ([]byte, error) {
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+path, nil)
	if err != nil {
		return nil, usage("--http: %v", err)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		next := []string{"see that the address is right (--http, " + envHTTPAddr + ") and that stintd runs there"}
		return nil, &failure{error: fmt.Errorf("fetch: %w", err), code: codeUnavailable, next: next}
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, &failure{error: fmt.Errorf("fetch %s%s: %s", base, path, answer.Status), code: codeUnavailable}
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxTrust+1))
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	if len(body) > maxTrust {
		return nil, errors.New("fetch: longer than 32 MiB")
	}
	return body, nil
}

func checkBundle(body []byte) (string, error) {
	var about []string
	for rest := body; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", fmt.Errorf("not a bundle: %w", err)
		}
		about = append(about, fmt.Sprintf("%s, until %s, SHA-256 %s", cert.Subject, cert.NotAfter.UTC().Format(time.DateOnly), agent.Fingerprint(cert)))
	}
	if len(about) == 0 {
		return "", errors.New("not a bundle: it holds no certificate")
	}
	return strings.Join(about, "; "), nil
}

func checkCRL(body []byte) (string, error) {
	block, _ := pem.Decode(body)
	if block == nil {
		return "", errors.New("not a CRL: it is no PEM")
	}
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("not a CRL: %w", err)
	}
	about := fmt.Sprintf("CRL %v of %s, %d revoked, valid from %s, next by %s", crl.Number, crl.Issuer, len(crl.RevokedCertificateEntries),
		crl.ThisUpdate.UTC().Format(time.RFC3339), crl.NextUpdate.UTC().Format(time.RFC3339))
	if time.Now().After(crl.NextUpdate) {
		about += " (OVERDUE)"
	}
	return about, nil
}
