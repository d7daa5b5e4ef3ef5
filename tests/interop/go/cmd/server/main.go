// Serves the storage with Go's own net/rpc on the address given, and says where.
package main

import (
	"fmt"
	"log"
	"net"
	"os"

	"interop/original"
)

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("serving", listener.Addr())
	log.Fatal(original.Serve(listener))
}
