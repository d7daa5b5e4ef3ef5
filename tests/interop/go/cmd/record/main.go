// Records what Go's net/rpc client and server say to each other, as JSON.
//
//	record PATH_OF_SERVER > net_rpc.json
package main

import (
	"bufio"
	"bytes"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"strings"

	"interop/iproto"
)

type step struct {
	Request string `json:"request"`
	Reply   string `json:"reply"`
	Error   string `json:"error,omitempty"`
}

type connection struct {
	Name  string `json:"name"`
	Steps []step `json:"steps"`
}

// tap is a connection of which all bytes are kept.
type tap struct {
	net.Conn
	sent, got bytes.Buffer
}

func (t *tap) Write(data []byte) (int, error) {
	t.sent.Write(data)
	return t.Conn.Write(data)
}

func (t *tap) Read(data []byte) (int, error) {
	n, err := t.Conn.Read(data)
	t.got.Write(data[:n])
	return n, err
}

type recorder struct {
	tap    *tap
	client *rpc.Client
	made   connection
}

// call makes one call and keeps its bytes; a server whose reply has an error answers all the same.
func (r *recorder) call(method string, arguments any) {
	var response iproto.Response
	err := r.client.Call(method, arguments, &response)
	made := step{
		Request: hex.EncodeToString(r.tap.sent.Bytes()),
		Reply:   hex.EncodeToString(r.tap.got.Bytes()),
	}
	if err != nil {
		if _, answered := err.(rpc.ServerError); !answered {
			log.Fatal(err)
		}
		made.Error = err.Error()
	}
	r.made.Steps = append(r.made.Steps, made)
	r.tap.sent.Reset()
	r.tap.got.Reset()
}

func (r *recorder) execute(function uint32, body []byte) {
	r.call(iproto.Method, iproto.NewRequest(function, uint32(len(r.made.Steps)), body))
}

// record is one connection to a fresh server.
func record(server, name string, calls func(*recorder)) connection {
	process := exec.Command(server, "127.0.0.1:0")
	process.Stderr = os.Stderr
	output, err := process.StdoutPipe()
	if err == nil {
		err = process.Start()
	}
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	}()
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		log.Fatal(err)
	}
	dialled, err := net.Dial("tcp", strings.TrimSpace(strings.TrimPrefix(line, "serving ")))
	if err != nil {
		log.Fatal(err)
	}
	kept := &tap{Conn: dialled}
	recording := &recorder{kept, rpc.NewClient(kept), connection{Name: name}}
	calls(recording)
	_ = recording.client.Close()
	return recording.made
}

// original is the sequence of calls of the original's own client program.
func original(r *recorder) {
	read := func(index int) { r.execute(iproto.Read, iproto.ReadBody(index)) }
	replace := func(index int, text string) {
		r.execute(iproto.Replace, iproto.ReplaceBody(index, text))
	}
	read(1)
	replace(1, "first")
	read(1)
	replace(1, "second")
	read(1)
	r.execute(iproto.SwitchReadOnly, iproto.Nil())
	replace(1, "third")
	read(1)
	r.execute(iproto.SwitchMaintenance, iproto.Nil())
	replace(1, "third")
	read(1)
	r.execute(iproto.SwitchReadWrite, iproto.Nil())
	replace(1, strings.Repeat("A", 300))
	read(-1)
	read(1000)
	replace(-1, "a")
	replace(1000, "a")
	replace(1, "")
}

// lengths are strings whose lengths need one to three bytes, in bodies and messages.
func lengths(r *recorder) {
	for _, size := range []int{31, 32, 63, 64, 80, 127, 128, 255, 256} {
		r.execute(iproto.Replace, iproto.ReplaceBody(size, strings.Repeat("x", size)))
		r.execute(iproto.Read, iproto.ReadBody(size))
	}
}

func many(r *recorder) {
	for i := 0; i < 260; i++ {
		r.execute(iproto.Read, iproto.ReadBody(i))
	}
}

func unknown(r *recorder) {
	body := iproto.NewRequest(iproto.Read, 7, iproto.ReadBody(1))
	r.call("Other.Thing", body)
	r.call("MyService.Other", body)
	r.call("NoDot", "a string where a method of another service takes one")
	r.call("Other.Lists", []string{"a", "b"})
	r.call("Other.Maps", map[string]int{"a": 1})
	r.call("Other.Nested", struct{ Inner struct{ List []int } }{})
	r.call(iproto.Method, body)
}

// order has the fields in another order, and more of them than the server knows.
func order(r *recorder) {
	type Header struct {
		Trace      string
		RequestID  uint32
		FuncID     uint32
		BodyLength uint32
	}
	type Request struct {
		Body    []byte
		Sampled bool
		Weight  float64
		Shift   int
		Phase   complex128
		Header  Header
	}
	for i := 0; i < 3; i++ {
		body := iproto.ReadBody(i)
		r.call(iproto.Method, Request{
			Body:    body,
			Sampled: i != 1,
			Weight:  1.5,
			Shift:   -1000 * i,
			Phase:   complex(1, 2),
			Header:  Header{"trace", uint32(i), iproto.Read, uint32(len(body))},
		})
	}
}

// ids uses up the numbers of types that take one byte.
func ids(r *recorder) {
	encoder := gob.NewEncoder(io.Discard)
	for _, value := range []any{
		[1]int{}, [2]int{}, [3]int{}, [4]int{}, [5]int{}, [6]int{}, [7]int{}, [8]int{}, [9]int{},
		[1]bool{}, [2]bool{}, [3]bool{}, [4]bool{}, [5]bool{}, [6]bool{}, [7]bool{}, [8]bool{},
		[1]string{}, [2]string{}, [3]string{}, [4]string{}, [5]string{}, [6]string{}, [7]string{},
		[1]uint{}, [2]uint{}, [3]uint{}, [4]uint{}, [5]uint{}, [6]uint{}, [7]uint{}, [8]uint{},
		[1]float64{}, [2]float64{}, [3]float64{}, [4]float64{}, [5]float64{}, [6]float64{},
		[1]int8{}, [2]int16{}, [3]int32{}, [9]int64{}, [10]int{}, [11]int{}, [12]int{}, [13]int{},
		[14]int{}, [15]int{}, [16]int{}, [17]int{}, [18]int{}, [19]int{}, [20]int{}, [21]int{},
		[22]int{}, [23]int{}, [24]int{}, [25]int{}, [26]int{}, [27]int{}, [28]int{}, [29]int{},
		[30]int{}, [31]int{}, [32]int{}, [33]int{}, [34]int{}, [35]int{}, [36]int{}, [37]int{},
	} {
		if err := encoder.Encode(value); err != nil {
			log.Fatal(err)
		}
	}
	type Header struct{ FuncID, BodyLength, RequestID uint32 }
	type Request struct {
		Header Header
		Body   []byte
	}
	for i := 0; i < 2; i++ {
		body := iproto.ReadBody(1)
		r.call(iproto.Method, Request{Header{iproto.Read, uint32(len(body)), uint32(i)}, body})
	}
}

func main() {
	server := os.Args[1]
	made := []connection{
		record(server, "the calls of the original's client program", original),
		record(server, "strings of many lengths", lengths),
		record(server, "numbers of calls that take two and three bytes", many),
		record(server, "services, methods and types that the server does not have", unknown),
		record(server, "fields in another order, and more of them", order),
		record(server, "types with numbers of two bytes", ids),
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(map[string]any{"connections": made}); err != nil {
		log.Fatal(fmt.Errorf("cannot write: %w", err))
	}
}
