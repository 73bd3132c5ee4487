package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

const signalBase = 128 // exit code of a signal: 128 + its number

// signals takes the signals of `stint run` and hands them to whom they concern at the time.
type signals struct {
	in   chan os.Signal
	done chan struct{}

	mu     sync.Mutex // guards what follows
	target func(os.Signal)
	first  syscall.Signal // that came before there was a command
}

// listen begins to take signals. Until forward is called, those that end a program cancel.
func listen(cancel context.CancelFunc) *signals {
	s := &signals{in: make(chan os.Signal, 32), done: make(chan struct{})}
	s.target = func(sig os.Signal) { s.setup(sig, cancel) }
	signal.Notify(s.in, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	go func() {
		defer close(s.done)
		for sig := range s.in {
			s.mu.Lock()
			s.target(sig)
			s.mu.Unlock()
		}
	}()
	return s
}

// setup is the target while there is no command. It is called with the lock.
func (s *signals) setup(sig os.Signal, cancel context.CancelFunc) {
	number, ok := sig.(syscall.Signal)
	if !ok || number == syscall.SIGUSR1 || number == syscall.SIGUSR2 || number == syscall.SIGWINCH {
		return
	}
	if s.first == 0 {
		s.first = number
	}
	cancel()
}

// handOver is forward to the command that now is there. What came too late to stop it from being started reaches it too.
func (s *signals) handOver(target func(os.Signal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target = target
	if s.first != 0 {
		target(s.first)
	}
}

// forward sends what comes from now on to another target.
func (s *signals) forward(target func(os.Signal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target = target
}

// caught returns the number of the signal that came before there was a command; 0 for none.
func (s *signals) caught() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.first)
}

// explain gives what a signal cut short the exit code of that signal.
func (s *signals) explain(err error) error {
	if number := s.caught(); number != 0 && errors.Is(err, context.Canceled) {
		return &failure{error: errors.New("interrupted"), code: signalBase + number}
	}
	return err
}

func (s *signals) close() {
	signal.Stop(s.in)
	close(s.in)
	<-s.done
}
