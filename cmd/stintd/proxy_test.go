package main

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"
)

// trouble is what a proxy does to a request.
type trouble int32

const (
	noTrouble   trouble = iota
	lostAnswer          // the request is carried out, and the connection breaks instead of its answer
	lateAnswer          // its answer comes after an issue's deadline
	tooMany             // 429, not carried out
	otherServer         // what is not what was asked answers: 200 and nonsense
)

// late is longer than an issue may take.
const late = 11 * time.Second

// proxy stands before a server that speaks plain HTTP, and makes trouble.
type proxy struct {
	url  string
	mode atomic.Int32
	over chan struct{} // closed when the test ends: nothing is late any more
}

// newProxy starts a proxy before a server, until the test ends.
func newProxy(tb testing.TB, server string) *proxy {
	tb.Helper()
	target, err := url.Parse(server)
	if err != nil {
		tb.Fatal(err)
	}
	p := &proxy{over: make(chan struct{})}
	forward := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: p.answered,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // as a dead server does
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch trouble(p.mode.Load()) {
		case tooMany:
			http.Error(w, `{"errors":["request path \"x\": rate limit quota exceeded"]}`, http.StatusTooManyRequests)
		case otherServer:
			_, _ = w.Write([]byte(`{"hello":"world"}`)) // who asked may be gone
		case noTrouble, lostAnswer, lateAnswer:
			forward.ServeHTTP(w, r)
		}
	}))
	tb.Cleanup(front.Close)
	tb.Cleanup(func() { close(p.over) })
	p.url = front.URL
	return p
}

// answered makes trouble with the answer of a request that was carried out.
func (p *proxy) answered(r *http.Response) error {
	switch trouble(p.mode.Load()) {
	case lostAnswer:
		return http.ErrAbortHandler
	case lateAnswer:
		select {
		case <-p.over:
		case <-r.Request.Context().Done():
		case <-time.After(late):
		}
	case noTrouble, tooMany, otherServer:
	}
	return nil
}

// make makes trouble until the returned function is called.
func (p *proxy) make(what trouble) (end func()) {
	p.mode.Store(int32(what))
	return func() { p.mode.Store(int32(noTrouble)) }
}
