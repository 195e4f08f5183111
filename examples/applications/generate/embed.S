// Places the model and the tokenizer in the read-only data of the program. The build passes the two
// paths; see embedded.hpp for the C++ side. The bytes are aligned to 64, a cache line, so that
// tensors may be read in place.

        .section .rodata
        .balign 64
        .global kvc_model_begin
        .global kvc_model_end
kvc_model_begin:
        .incbin KVC_MODEL_FILE
kvc_model_end:
        .byte 0

        .balign 64
        .global kvc_tokenizer_begin
        .global kvc_tokenizer_end
kvc_tokenizer_begin:
        .incbin KVC_TOKENIZER_FILE
kvc_tokenizer_end:
        .byte 0

#if defined(__ELF__)
        .section .note.GNU-stack, "", %progbits
#endif
