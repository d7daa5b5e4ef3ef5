// A client of the storage by Go's net/rpc, with nothing but Go's own packages:
//
//	iproto serve --net-rpc-bind 127.0.0.1:8080
//	go run examples/net_rpc_client.go 127.0.0.1:8080
package main

import (
	"fmt"
	"log"
	"net/rpc"
	"os"
)

type Header struct {
	FuncID     uint32
	BodyLength uint32
	RequestID  uint32
}

type Request struct {
	Header Header
	Body   []byte
}

type Response struct {
	Header     Header
	ReturnCode uint32
	Body       []byte
}

func call(client *rpc.Client, function uint32, body []byte) Response {
	request := Request{Header{FuncID: function, BodyLength: uint32(len(body))}, body}
	var response Response
	if err := client.Call("MyService.MainHandler", request, &response); err != nil {
		log.Fatal(err)
	}
	return response
}

func main() {
	address := "localhost:80"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	client, err := rpc.Dial("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	// MsgPack of {"ID": 7, "S": "hello"}, of {"ID": 7} and of {"ID": 1000}.
	written := call(client, 0x00020001, []byte("\x82\xa2ID\x07\xa1S\xa5hello"))
	read := call(client, 0x00020002, []byte("\x81\xa2ID\x07"))
	refused := call(client, 0x00020002, []byte("\x81\xa2ID\xcd\x03\xe8"))
	fmt.Printf("write: %d %q\n", written.ReturnCode, written.Body)
	fmt.Printf("read: %d %q\n", read.ReturnCode, read.Body)
	fmt.Printf("refused: %d %q\n", refused.ReturnCode, refused.Body)
}
