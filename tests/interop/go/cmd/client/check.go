package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/rpc"
	"strings"
	"sync"

	"interop/iproto"
)

type expected struct {
	function uint32
	request  []byte
	body     []byte // of the reply
	text     string // instead of it, of an error
}

// table is every operation, state and error that the original had, on one connection.
func table() []expected {
	read := func(index int, text string) expected {
		return expected{iproto.Read, iproto.ReadBody(index), iproto.TextBody(text), ""}
	}
	replace := func(index int, text string) expected {
		return expected{iproto.Replace, iproto.ReplaceBody(index, text), []byte{0x80}, ""}
	}
	change := func(function uint32) expected {
		return expected{function, iproto.Nil(), iproto.Nil(), ""}
	}
	refused := func(step expected, text string) expected {
		step.text = text
		return step
	}
	const (
		readOnly    = "can't replace at readOnly mode"
		noWrite     = "can't replace at maintenance mode"
		noRead      = "can't read at maintenance mode"
		tooLong     = "incoming string cannot take up more than 256 bytes"
		noSuchIndex = "invalid ID. Valid value in range[0; 999]"
	)
	long := strings.Repeat("A", 300)
	return []expected{
		change(iproto.SwitchReadWrite),
		replace(1, ""),
		read(1, ""),
		replace(1, "first"),
		read(1, "first"),
		replace(1, "second"),
		read(1, "second"),
		replace(999, strings.Repeat("\xff", 256)),
		read(999, strings.Repeat("\xff", 256)),
		replace(0, "\x00"),
		read(0, "\x00"),
		change(iproto.SwitchReadOnly),
		refused(replace(1, "third"), readOnly),
		refused(replace(1, long), readOnly),
		read(1, "second"),
		refused(read(1000, ""), noSuchIndex),
		change(iproto.SwitchMaintenance),
		refused(replace(1, "third"), noWrite),
		refused(read(1, ""), noRead),
		refused(read(1000, ""), noRead),
		change(iproto.SwitchReadWrite),
		refused(replace(1, long), tooLong),
		refused(replace(-1, long), tooLong),
		refused(read(-1, ""), noSuchIndex),
		refused(read(1000, ""), noSuchIndex),
		refused(replace(-1, "a"), noSuchIndex),
		refused(replace(1000, "a"), noSuchIndex),
		read(1, "second"),
		replace(1, ""),
		replace(0, ""),
		replace(999, ""),
	}
}

func check(address string) error {
	client, err := dial(address)
	if err != nil {
		return err
	}
	steps := table()
	for id, step := range steps {
		if err := checkStep(client, uint32(id), step); err != nil {
			return fmt.Errorf("step %d: %w", id, err)
		}
	}
	if err := checkRefusals(client); err != nil {
		return err
	}
	if err := checkConcurrent(client); err != nil {
		return err
	}
	if err := client.Close(); err != nil {
		return err
	}
	if _, err := call(client, iproto.Read, 0, iproto.ReadBody(1)); !errors.Is(err, rpc.ErrShutdown) {
		return fmt.Errorf("after Close: %v", err)
	}
	fmt.Println("ok", len(steps))
	return nil
}

func checkStep(client *rpc.Client, id uint32, step expected) error {
	response, err := call(client, step.function, id, step.request)
	if err != nil {
		return err
	}
	code, body := uint32(0), step.body
	if step.text != "" {
		code, body = 1, iproto.String(step.text)
	}
	header := iproto.Header{FuncID: step.function, BodyLength: uint32(len(body)), RequestID: id}
	if response.Header != header || response.ReturnCode != code || !bytes.Equal(response.Body, body) {
		return fmt.Errorf("%+v was answered with %+v, body %q", step, response, response.Body)
	}
	return nil
}

// checkRefusals has what the original answered in net/rpc's way, and what it did not answer.
func checkRefusals(client *rpc.Client) error {
	var response iproto.Response
	request := iproto.NewRequest(iproto.Read, 1, iproto.ReadBody(1))
	for method, text := range map[string]string{
		"Other.Thing":     "rpc: can't find service Other.Thing",
		"MyService.Other": "rpc: can't find method MyService.Other",
		"MyService":       "rpc: service/method request ill-formed: MyService",
	} {
		for _, argument := range []any{request, "text", []string{"a"}, map[string]int{"a": 1}} {
			err := client.Call(method, argument, &response)
			if err != rpc.ServerError(text) {
				return fmt.Errorf("%s: %v", method, err)
			}
		}
	}
	if err := client.Call(iproto.Method, "text", &response); err == nil || isLost(err) {
		return fmt.Errorf("a string as argument: %v", err)
	}
	response, err := call(client, 0x7fffffff, 5, nil)
	if err != nil || response.ReturnCode != 1 || response.Header.RequestID != 5 {
		return fmt.Errorf("unknown function: %+v, %v", response, err)
	}
	text, err := iproto.Text(response.Body)
	if err != nil || text == "" {
		return fmt.Errorf("unknown function: body %x", response.Body)
	}
	return nil
}

// checkConcurrent has many calls on their way on one connection, each for a slot of its own.
func checkConcurrent(client *rpc.Client) error {
	const callers, rounds = 64, 50
	var group sync.WaitGroup
	failures := make(chan error, callers)
	for caller := 0; caller < callers; caller++ {
		group.Add(1)
		go func(index int) {
			defer group.Done()
			for round := 0; round < rounds; round++ {
				text := fmt.Sprintf("%d/%d", index, round)
				write := expected{iproto.Replace, iproto.ReplaceBody(index, text), []byte{0x80}, ""}
				read := expected{iproto.Read, iproto.ReadBody(index), iproto.TextBody(text), ""}
				for _, step := range []expected{write, read} {
					if err := checkStep(client, uint32(index*rounds+round), step); err != nil {
						failures <- err
						return
					}
				}
			}
		}(caller)
	}
	group.Wait()
	close(failures)
	return <-failures
}
