package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/stint-dev/stint/broker/fault"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// validate refuses a unary call with invalid fields; messages of streams are checked as they come.
func (s *Server) validate(ctx context.Context, c *call, next func(context.Context) error) error {
	if message, ok := c.message.(proto.Message); ok {
		if err := s.check(message); err != nil {
			return err
		}
	}
	return next(ctx)
}

// check holds a message against the rules in its descriptor and those that a descriptor cannot state.
func (s *Server) check(message proto.Message) error {
	if isUnreadable(message) {
		return fault.New(fault.InvalidArgument, "the bytes of the request are no "+string(message.ProtoReflect().Descriptor().FullName()))
	}
	fields, err := s.violations(message)
	if err != nil {
		return err
	}
	if declare, ok := message.(*stintv1.DeclareTaskRequest); ok {
		fields = append(fields, checkDeclare(declare)...)
	}
	return invalid(fields...)
}

func (s *Server) violations(message proto.Message) ([]fault.Field, error) {
	err := s.validator.Validate(message)
	if err == nil {
		return nil, nil
	}
	found, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok {
		return nil, fmt.Errorf("validate a request: %w", err)
	}
	var fields []fault.Field
	for _, v := range found.Violations {
		problem := v.Proto.GetMessage()
		if problem == "" {
			problem = v.Proto.GetRuleId()
		}
		fields = append(fields, fault.Field{Name: protovalidate.FieldPathString(v.Proto.GetField()), Problem: problem})
	}
	return fields, nil
}

// checkDeclare checks what spans several fields.
func checkDeclare(d *stintv1.DeclareTaskRequest) []fault.Field {
	var fields []fault.Field
	if d.GetNotAfter() != nil && d.GetTtl() != nil {
		fields = append(fields, fault.Field{Name: "ttl", Problem: "must not be set beside not_after"})
	}
	if d.GetNotAfter() != nil && !d.GetNotAfter().IsValid() {
		fields = append(fields, fault.Field{Name: "not_after", Problem: "must be a time from year 1 to 9999"})
	}
	return fields
}

// invalid makes one refusal of all invalid fields; nil where there are none.
func invalid(fields ...fault.Field) error {
	if len(fields) == 0 {
		return nil
	}
	lines := make([]string, 0, len(fields))
	for _, f := range fields {
		lines = append(lines, f.Name+": "+f.Problem)
	}
	f := fault.New(fault.InvalidArgument, strings.Join(lines, "; "))
	f.Fields = fields
	return f
}
