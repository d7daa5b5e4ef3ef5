// A client of the storage, by net/rpc.
//
//	client ADDRESS check
//	client ADDRESS call FUNCTION BODY_IN_HEX [METHOD]
//	client ADDRESS load SECONDS CONNECTIONS DEPTH
//	client ADDRESS bench SECONDS CONNECTIONS DEPTH
//
// An address with a slash is the path of a unix socket.
package main

import (
	"encoding/hex"
	"fmt"
	"log"
	"net"
	"net/rpc"
	"os"
	"strconv"
	"strings"
	"time"

	"interop/iproto"
)

func dial(address string) (*rpc.Client, error) {
	if strings.Contains(address, "/") {
		return rpc.Dial("unix", address)
	}
	return rpc.Dial("tcp", address)
}

// call makes one call, and returns what came; an error is the connection's, or net/rpc's own.
func call(client *rpc.Client, function uint32, id uint32, body []byte) (iproto.Response, error) {
	var response iproto.Response
	err := client.Call(iproto.Method, iproto.NewRequest(function, id, body), &response)
	return response, err
}

func number(text string) int {
	value, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		log.Fatal(err)
	}
	return int(value)
}

func printCall(address string, function uint32, body string, method string) error {
	client, err := dial(address)
	if err != nil {
		return err
	}
	packed, err := hex.DecodeString(body)
	if err != nil {
		return err
	}
	var response iproto.Response
	if err := client.Call(method, iproto.NewRequest(function, 77, packed), &response); err != nil {
		fmt.Println("error", err)
		return nil
	}
	fmt.Printf("%+v %d %x\n", response.Header, response.ReturnCode, response.Body)
	return nil
}

func main() {
	log.SetFlags(0)
	arguments := os.Args[1:]
	if len(arguments) < 2 {
		log.Fatal("client ADDRESS check|call|load|bench ...")
	}
	address, command, rest := arguments[0], arguments[1], arguments[2:]
	var err error
	switch {
	case command == "check":
		err = check(address)
	case command == "call" && len(rest) == 2:
		err = printCall(address, uint32(number(rest[0])), rest[1], iproto.Method)
	case command == "call" && len(rest) == 3:
		err = printCall(address, uint32(number(rest[0])), rest[1], rest[2])
	case command == "load" && len(rest) == 3:
		err = load(address, seconds(rest[0]), number(rest[1]), number(rest[2]))
	case command == "bench" && len(rest) == 3:
		err = bench(address, seconds(rest[0]), number(rest[1]), number(rest[2]))
	default:
		err = fmt.Errorf("no such command: %s", strings.Join(arguments, " "))
	}
	if err != nil {
		log.Fatal(err)
	}
}

func seconds(text string) time.Duration {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		log.Fatal(err)
	}
	return time.Duration(value * float64(time.Second))
}

// isLost tells whether a call failed with its connection, and not by an answer.
func isLost(err error) bool {
	_, answered := err.(rpc.ServerError)
	_, network := err.(net.Error)
	return network || !answered
}
