"""The CPython entry points as LLVM IR: a call of an executable from Python, with no Python code in between.

    PyObject *tw_call(self, args, nargsf, names) {            // a vectorcallfunc
      B = block of self; F = B->frame
      if (names || nargs != B->n_inputs || !F->free) goto slow;
      for k in n_inputs: { if (!matches(args[k], B->inputs[k], C | ALIGNED)) goto slow; F->inputs[k] = args[k]->data; }
      F->free = 0
      for k in n_outputs: { y = PyArray_NewFromDescr(…B->outputs[k]…); F->outputs[k] = y->data; }
      if (B->release) s = PyEval_SaveThread();
      failed = B->run(F->inputs, F->outputs, B->weights->table, F->arena, F->ctx);
      if (B->release) PyEval_RestoreThread(s);
      F->ctx->error = 0; F->free = 1
      if (failed) { PyErr_SetString(InputError, …); return NULL; }
      return y, or a tuple
    slow:
      return PyObject_Vectorcall(PyMethod_New(Executable.__call__, self), args, nargs, names);
    }
    PyObject *tw_run_into(self, args, nargs, names);          // METH_FASTCALL | METH_KEYWORDS; args[0]: the output arrays
    PyObject *tw_new(type, args, names);                      // an object whose vectorcallfunc is tw_call
    i64 tw_take(F);                                           // takes the frame if it is free; 1: taken

`matches` compares an argument with what the plan was compiled for: its type is `numpy.ndarray` itself, its descr is the
canonical one (so byte order and dtype are right), dimensions are equal (-1: any), the flags are there. Whatever it does not know goes
the slow way, which converts and explains.

The functions know nothing of a particular plan: one library serves all, and tables (records of 8-byte fields, below) say
what to check and call. The GIL is what makes taking the frame atomic; it is held all the time but around a `run` that is
long enough (`release`).

Sources: CPython's vectorcall protocol (PEP 590); NumPy's C API, `ndarraytypes.h`: PyArrayObject_fields.
"""
from __future__ import annotations

from enum import IntEnum

from .entry import CTX_ROWS

CALL, RUN_INTO, NEW, TAKE, API = SYMBOLS = ("tw_call", "tw_run_into", "tw_new", "tw_take", "tw_api")
HEADER = 16  # bytes of an object before its own fields: reference count and type
SELF_CALL, SELF_BLOCK, SELF_SIZE = HEADER, HEADER + 8, HEADER + 16  # of an executable: vectorcallfunc, and its Block (or NULL)
TYPE = 8
DATA, ND, DIMENSIONS, DESCR, FLAGS = HEADER, HEADER + 8, HEADER + 16, HEADER + 40, HEADER + 48  # of an ndarray
READABLE, WRITEABLE = 0x101, 0x501  # NPY_ARRAY_C_CONTIGUOUS | ALIGNED (| WRITEABLE)


class Api(IntEnum):
    """Positions in the table of what the code calls and compares with, which the process fills in."""

    NDARRAY = 0  # objects
    LIST = 1
    TUPLE = 2
    NONE = 3
    ERROR = 4  # the exception class for an index out of range
    MESSAGE = 5  # its text, a C string
    CALL_SLOWLY = 6  # Python functions that take any arguments, self first
    RUN_INTO_SLOWLY = 7
    PyArray_NewFromDescr = 8
    Py_IncRef = 9
    Py_DecRef = 10
    PyEval_SaveThread = 11
    PyEval_RestoreThread = 12
    PyErr_SetString = 13
    PyMethod_New = 14
    PyObject_Vectorcall = 15
    PyTuple_New = 16
    PyTuple_SetItem = 17
    PyTuple_GetItem = 18
    PyTuple_Size = 19
    PySequence_Tuple = 20
    PyType_GenericNew = 21


class Block(IntEnum):
    """Fields of the record of one Instance."""

    RUN = 0  # tw_run of the plan
    WEIGHTS = 1  # -> Weights
    FRAME = 2  # -> Frame
    RELEASE = 3  # run without the GIL from so many rows on (plans not by rows: 0, always, or 1, never)
    N_INPUTS = 4
    N_OUTPUTS = 5
    INPUTS = 6  # -> Tensor[n_inputs]
    OUTPUTS = 7
    BY_ROWS = 8  # 1: the only input has any number of rows (dimension -1), which are told to ctx and to the outputs' dimensions


class Weights(IntEnum):
    TABLE = 0
    OWNER = 1  # the object that keeps table and arrays alive


class Frame(IntEnum):
    FREE = 0
    INPUTS = 1
    OUTPUTS = 2
    ARENA = 3
    CTX = 4


class Tensor(IntEnum):
    DESCR = 0
    ND = 1
    DIMS = 2
    BYTES = 3


def emit_pycall() -> str:
    """LLVM IR text of the module. It depends on nothing but the layouts above."""
    return "\n".join([_HELPERS, _call(), _run_into()])


def _get(name: str, base: str, field: int, kind: str = "ptr") -> str:
    """%name = base->field"""
    return f"  %{name}_at = getelementptr i64, ptr %{base}, i64 {int(field)}\n  %{name} = load {kind}, ptr %{name}_at"


def _byte(name: str, base: str, offset: int, kind: str = "ptr") -> str:
    """%name = *(kind *)((char *)base + offset)"""
    return f"  %{name}_at = getelementptr i8, ptr %{base}, i64 {offset}\n  %{name} = load {kind}, ptr %{name}_at"


def _api(name: str, which: Api) -> str:
    return f"  %{name} = load ptr, ptr getelementptr (i8, ptr @{API}, i64 {8 * which})"


_INLINE = "alwaysinline nounwind"
_HELPERS = f"""
@{API} = dso_local global [{len(Api)} x ptr] zeroinitializer, align 64

define i64 @{TAKE}(ptr %frame) nounwind {{
  %free = load i64, ptr %frame
  store i64 0, ptr %frame
  ret i64 %free
}}

define ptr @{NEW}(ptr %type, ptr %args, ptr %names) nounwind {{
entry:
{_api("new", Api.PyType_GenericNew)}
  %self = call ptr %new(ptr %type, ptr %args, ptr %names)
  %none = icmp eq ptr %self, null
  br i1 %none, label %end, label %made
made:
  %call_at = getelementptr i8, ptr %self, i64 {SELF_CALL}
  store ptr @{CALL}, ptr %call_at
  br label %end
end:
  ret ptr %self
}}

define internal void @incref(ptr %x) {_INLINE} {{
{_api("f", Api.Py_IncRef)}
  call void %f(ptr %x)
  ret void
}}

define internal void @decref(ptr %x) {_INLINE} {{
{_api("f", Api.Py_DecRef)}
  call void %f(ptr %x)
  ret void
}}

define internal i1 @matches(ptr %x, ptr %want, i32 %flags) {_INLINE} {{
entry:
{_byte("type", "x", TYPE)}
{_api("ndarray", Api.NDARRAY)}
  %is_array = icmp eq ptr %type, %ndarray
  br i1 %is_array, label %array, label %no
array:
{_byte("descr", "x", DESCR)}
{_get("want_descr", "want", Tensor.DESCR)}
  %same_descr = icmp eq ptr %descr, %want_descr
{_byte("has", "x", FLAGS, "i32")}
  %common = and i32 %has, %flags
  %readable = icmp eq i32 %common, %flags
{_byte("nd32", "x", ND, "i32")}
  %nd = sext i32 %nd32 to i64
{_get("want_nd", "want", Tensor.ND, "i64")}
  %same_nd = icmp eq i64 %nd, %want_nd
  %both = and i1 %same_descr, %readable
  %all = and i1 %both, %same_nd
  br i1 %all, label %shape, label %no
shape:
{_byte("dims", "x", DIMENSIONS)}
{_get("want_dims", "want", Tensor.DIMS)}
  br label %head
head:
  %k = phi i64 [0, %shape], [%next, %body]
  %more = icmp slt i64 %k, %nd
  br i1 %more, label %body, label %yes
body:
  %d_at = getelementptr i64, ptr %dims, i64 %k
  %d = load i64, ptr %d_at
  %w_at = getelementptr i64, ptr %want_dims, i64 %k
  %w = load i64, ptr %w_at
  %next = add i64 %k, 1
  %equal = icmp eq i64 %d, %w
  %any = icmp eq i64 %w, -1
  %same = or i1 %equal, %any
  br i1 %same, label %head, label %no
yes:
  ret i1 true
no:
  ret i1 false
}}

; whether all of arrays[n] match; then their data pointers are in slots
define internal i1 @collect(ptr %arrays, i64 %n, ptr %wants, ptr %slots, i32 %flags) {_INLINE} {{
entry:
  br label %head
head:
  %k = phi i64 [0, %entry], [%next, %good]
  %more = icmp slt i64 %k, %n
  br i1 %more, label %body, label %yes
body:
  %x_at = getelementptr ptr, ptr %arrays, i64 %k
  %x = load ptr, ptr %x_at
  %want = getelementptr [{len(Tensor)} x i64], ptr %wants, i64 %k
  %fits = call i1 @matches(ptr %x, ptr %want, i32 %flags)
  br i1 %fits, label %good, label %no
good:
{_byte("data", "x", DATA)}
  %slot = getelementptr ptr, ptr %slots, i64 %k
  store ptr %data, ptr %slot
  %next = add i64 %k, 1
  br label %head
yes:
  ret i1 true
no:
  ret i1 false
}}

; whether memory number k of `slots` shares bytes with any of the first n of `others`
define internal i1 @overlaps(ptr %slots, ptr %wants, i64 %k, ptr %others, ptr %other_wants, i64 %n) {_INLINE} {{
entry:
  %low_at = getelementptr i64, ptr %slots, i64 %k
  %low = load i64, ptr %low_at
  %want = getelementptr [{len(Tensor)} x i64], ptr %wants, i64 %k
{_get("size", "want", Tensor.BYTES, "i64")}
  %high = add i64 %low, %size
  br label %head
head:
  %j = phi i64 [0, %entry], [%next, %body]
  %more = icmp slt i64 %j, %n
  br i1 %more, label %body, label %no
body:
  %from_at = getelementptr i64, ptr %others, i64 %j
  %from = load i64, ptr %from_at
  %other = getelementptr [{len(Tensor)} x i64], ptr %other_wants, i64 %j
{_get("length", "other", Tensor.BYTES, "i64")}
  %to = add i64 %from, %length
  %before = icmp ult i64 %low, %to
  %after = icmp ult i64 %from, %high
  %shared = and i1 %before, %after
  %next = add i64 %j, 1
  br i1 %shared, label %yes, label %head
yes:
  ret i1 true
no:
  ret i1 false
}}

; runs the plan in a frame that was taken and filled, and gives the frame back; true: an index was out of range, the error is set
define internal i1 @execute(ptr %block, ptr %frame) {_INLINE} {{
entry:
{_get("run", "block", Block.RUN)}
{_get("weights", "block", Block.WEIGHTS)}
{_get("table", "weights", Weights.TABLE)}
{_get("inputs", "frame", Frame.INPUTS)}
{_get("outputs", "frame", Frame.OUTPUTS)}
{_get("arena", "frame", Frame.ARENA)}
{_get("ctx", "frame", Frame.CTX)}
{_get("release", "block", Block.RELEASE, "i64")}
{_get("rows", "ctx", CTX_ROWS, "i64")}
  %long = icmp sge i64 %rows, %release
  br i1 %long, label %without_gil, label %with_gil
with_gil:
  %failed1 = call i32 %run(ptr %inputs, ptr %outputs, ptr %table, ptr %arena, ptr %ctx)
  br label %end
without_gil:
{_get("owner", "weights", Weights.OWNER)}
  call void @incref(ptr %owner)
{_api("save", Api.PyEval_SaveThread)}
  %state = call ptr %save()
  %failed2 = call i32 %run(ptr %inputs, ptr %outputs, ptr %table, ptr %arena, ptr %ctx)
{_api("restore", Api.PyEval_RestoreThread)}
  call void %restore(ptr %state)
  call void @decref(ptr %owner)
  br label %end
end:
  %failed = phi i32 [%failed1, %with_gil], [%failed2, %without_gil]
  %bad = icmp ne i32 %failed, 0
  br i1 %bad, label %error, label %done
error:
  store i64 0, ptr %ctx
  store i64 1, ptr %frame
{_api("set", Api.PyErr_SetString)}
{_api("kind", Api.ERROR)}
{_api("message", Api.MESSAGE)}
  call void %set(ptr %kind, ptr %message)
  ret i1 true
done:
  store i64 1, ptr %frame
  ret i1 false
}}

; tells ctx and the outputs' dimensions how many rows the only input has
define internal void @set_rows(ptr %x, ptr %frame, ptr %wants, i64 %n) {_INLINE} {{
entry:
{_byte("dims", "x", DIMENSIONS)}
  %rows = load i64, ptr %dims
{_get("ctx", "frame", Frame.CTX)}
  %slot = getelementptr i64, ptr %ctx, i64 {CTX_ROWS}
  store i64 %rows, ptr %slot
  br label %head
head:
  %k = phi i64 [0, %entry], [%next, %body]
  %more = icmp slt i64 %k, %n
  br i1 %more, label %body, label %end
body:
  %want = getelementptr [{len(Tensor)} x i64], ptr %wants, i64 %k
{_get("own", "want", Tensor.DIMS)}
  store i64 %rows, ptr %own
  %next = add i64 %k, 1
  br label %head
end:
  ret void
}}

; a fresh array, whose data pointer is in slot k; NULL: out of memory
define internal ptr @fresh(ptr %wants, ptr %slots, i64 %k) {_INLINE} {{
entry:
  %want = getelementptr [{len(Tensor)} x i64], ptr %wants, i64 %k
{_get("descr", "want", Tensor.DESCR)}
{_get("nd", "want", Tensor.ND, "i64")}
{_get("dims", "want", Tensor.DIMS)}
  call void @incref(ptr %descr)
  %nd32 = trunc i64 %nd to i32
{_api("new", Api.PyArray_NewFromDescr)}
{_api("ndarray", Api.NDARRAY)}
  %y = call ptr %new(ptr %ndarray, ptr %descr, i32 %nd32, ptr %dims, ptr null, ptr null, i32 0, ptr null)
  %none = icmp eq ptr %y, null
  br i1 %none, label %end, label %made
made:
{_byte("data", "y", DATA)}
  %slot = getelementptr ptr, ptr %slots, i64 %k
  store ptr %data, ptr %slot
  br label %end
end:
  ret ptr %y
}}

; all outputs in a tuple
define internal ptr @fresh_tuple(ptr %wants, ptr %slots, i64 %n) noinline nounwind {{
entry:
{_api("new", Api.PyTuple_New)}
{_api("set", Api.PyTuple_SetItem)}
  %tuple = call ptr %new(i64 %n)
  %none = icmp eq ptr %tuple, null
  br i1 %none, label %end, label %head
head:
  %k = phi i64 [0, %entry], [%next, %good]
  %more = icmp slt i64 %k, %n
  br i1 %more, label %body, label %end
body:
  %y = call ptr @fresh(ptr %wants, ptr %slots, i64 %k)
  %failed = icmp eq ptr %y, null
  br i1 %failed, label %drop, label %good
good:
  %code = call i32 %set(ptr %tuple, i64 %k, ptr %y)
  %next = add i64 %k, 1
  br label %head
drop:
  call void @decref(ptr %tuple)
  br label %end
end:
  %result = phi ptr [null, %entry], [%tuple, %head], [null, %drop]
  ret ptr %result
}}

; function(self, *args, **names)
define internal ptr @slowly(ptr %function, ptr %self, ptr %args, i64 %n, ptr %names) noinline nounwind {{
entry:
{_api("new", Api.PyMethod_New)}
  %method = call ptr %new(ptr %function, ptr %self)
  %none = icmp eq ptr %method, null
  br i1 %none, label %end, label %made
made:
{_api("vectorcall", Api.PyObject_Vectorcall)}
  %y = call ptr %vectorcall(ptr %method, ptr %args, i64 %n, ptr %names)
  call void @decref(ptr %method)
  br label %end
end:
  %result = phi ptr [null, %entry], [%y, %made]
  ret ptr %result
}}
"""


def _enter(arguments: int) -> str:
    """From `entry` to `ready`, with %object, %block, %frame, %n_inputs, and %inputs filled from %first; else to `slow`."""
    return f"""
{_byte("object", "self", SELF_BLOCK)}
  %unbound = icmp eq ptr %object, null
  %named = icmp ne ptr %names, null
  %refused = or i1 %unbound, %named
  br i1 %refused, label %slow, label %bound
bound:
{_byte("block", "object", DATA)}
{_get("n_inputs", "block", Block.N_INPUTS, "i64")}
{_get("n_outputs", "block", Block.N_OUTPUTS, "i64")}
{_get("frame", "block", Block.FRAME)}
{_get("free", "frame", Frame.FREE, "i64")}
  %expected = add i64 %n_inputs, {arguments}
  %count_fits = icmp eq i64 %n, %expected
  %is_free = icmp ne i64 %free, 0
  %go = and i1 %count_fits, %is_free
  br i1 %go, label %check, label %slow
check:
  %first = getelementptr ptr, ptr %args, i64 {arguments}
{_get("in_wants", "block", Block.INPUTS)}
{_get("out_wants", "block", Block.OUTPUTS)}
{_get("in_slots", "frame", Frame.INPUTS)}
{_get("out_slots", "frame", Frame.OUTPUTS)}
  %fits = call i1 @collect(ptr %first, i64 %n_inputs, ptr %in_wants, ptr %in_slots, i32 {READABLE})
  br i1 %fits, label %ready, label %slow
ready:"""


def _call() -> str:
    return f"""
define dso_local ptr @{CALL}(ptr %self, ptr %args, i64 %nargsf, ptr %names) nounwind {{
entry:
  %n = and i64 %nargsf, {(1 << 63) - 1}
{_enter(0)}
  store i64 0, ptr %frame
  call void @incref(ptr %object)
{_get("by_rows", "block", Block.BY_ROWS, "i64")}
  %any_rows = icmp ne i64 %by_rows, 0
  br i1 %any_rows, label %set, label %count
set:
  %x = load ptr, ptr %args
  call void @set_rows(ptr %x, ptr %frame, ptr %out_wants, i64 %n_outputs)
  br label %count
count:
  %one = icmp eq i64 %n_outputs, 1
  br i1 %one, label %single, label %several
single:
  %y1 = call ptr @fresh(ptr %out_wants, ptr %out_slots, i64 0)
  br label %made
several:
  %y2 = call ptr @fresh_tuple(ptr %out_wants, ptr %out_slots, i64 %n_outputs)
  br label %made
made:
  %y = phi ptr [%y1, %single], [%y2, %several]
  %none = icmp eq ptr %y, null
  br i1 %none, label %no_memory, label %run
no_memory:
  store i64 1, ptr %frame
  br label %end
run:
  %failed = call i1 @execute(ptr %block, ptr %frame)
  br i1 %failed, label %drop, label %end
drop:
  call void @decref(ptr %y)
  br label %end
end:
  %result = phi ptr [null, %no_memory], [%y, %run], [null, %drop]
  call void @decref(ptr %object)
  ret ptr %result
slow:
{_api("function", Api.CALL_SLOWLY)}
  %other = call ptr @slowly(ptr %function, ptr %self, ptr %args, i64 %n, ptr %names)
  ret ptr %other
}}
"""


def _run_into() -> str:
    """A list or tuple of outputs is taken as a tuple of our own, which holds the arrays while the GIL is released."""
    return f"""
define ptr @{RUN_INTO}(ptr %self, ptr %args, i64 %n, ptr %names) nounwind {{
entry:
  %given = icmp sgt i64 %n, 0
  br i1 %given, label %look, label %plain
look:
  %outs = load ptr, ptr %args
{_byte("outs_type", "outs", TYPE)}
{_api("list", Api.LIST)}
{_api("tuple", Api.TUPLE)}
  %is_list = icmp eq ptr %outs_type, %list
  %is_tuple = icmp eq ptr %outs_type, %tuple
  %sequence = or i1 %is_list, %is_tuple
  br i1 %sequence, label %hold, label %plain
hold:
{_api("as_tuple", Api.PySequence_Tuple)}
  %own = call ptr %as_tuple(ptr %outs)
  %no_tuple = icmp eq ptr %own, null
  br i1 %no_tuple, label %fail, label %enter
plain:
  br label %enter
enter:
  %held = phi ptr [%own, %hold], [null, %plain]
{_enter(1)}
{_get("by_rows", "block", Block.BY_ROWS, "i64")}
  %any_rows = icmp ne i64 %by_rows, 0
  br i1 %any_rows, label %slow, label %fixed
fixed:
  %single = icmp eq ptr %held, null
  br i1 %single, label %one, label %many
one:
  %want_one = icmp eq i64 %n_outputs, 1
  br i1 %want_one, label %one_check, label %slow
one_check:
  %one_fits = call i1 @collect(ptr %args, i64 1, ptr %out_wants, ptr %out_slots, i32 {WRITEABLE})
  br i1 %one_fits, label %apart, label %slow
many:
{_api("count", Api.PyTuple_Size)}
  %size = call i64 %count(ptr %held)
  %same_size = icmp eq i64 %size, %n_outputs
  br i1 %same_size, label %many_head, label %slow
many_head:
  %i = phi i64 [0, %many], [%i_next, %many_good]
  %i_more = icmp slt i64 %i, %n_outputs
  br i1 %i_more, label %many_body, label %apart
many_body:
{_api("item", Api.PyTuple_GetItem)}
  %y = call ptr %item(ptr %held, i64 %i)
  %y_want = getelementptr [{len(Tensor)} x i64], ptr %out_wants, i64 %i
  %y_fits = call i1 @matches(ptr %y, ptr %y_want, i32 {WRITEABLE})
  br i1 %y_fits, label %many_good, label %slow
many_good:
{_byte("y_data", "y", DATA)}
  %y_slot = getelementptr ptr, ptr %out_slots, i64 %i
  store ptr %y_data, ptr %y_slot
  %i_next = add i64 %i, 1
  br label %many_head
apart:
  %k = phi i64 [0, %one_check], [0, %many_head], [%k_next, %apart_good]
  %k_more = icmp slt i64 %k, %n_outputs
  br i1 %k_more, label %apart_body, label %run
apart_body:
  %on_input = call i1 @overlaps(ptr %out_slots, ptr %out_wants, i64 %k, ptr %in_slots, ptr %in_wants, i64 %n_inputs)
  %on_output = call i1 @overlaps(ptr %out_slots, ptr %out_wants, i64 %k, ptr %out_slots, ptr %out_wants, i64 %k)
  %shared = or i1 %on_input, %on_output
  br i1 %shared, label %slow, label %apart_good
apart_good:
  %k_next = add i64 %k, 1
  br label %apart
run:
  store i64 0, ptr %frame
  call void @incref(ptr %object)
  %failed = call i1 @execute(ptr %block, ptr %frame)
  call void @decref(ptr %object)
  br i1 %failed, label %end, label %done
done:
{_api("nothing", Api.NONE)}
  call void @incref(ptr %nothing)
  br label %end
slow:
{_api("function", Api.RUN_INTO_SLOWLY)}
  %other = call ptr @slowly(ptr %function, ptr %self, ptr %args, i64 %n, ptr %names)
  br label %end
end:
  %result = phi ptr [null, %run], [%nothing, %done], [%other, %slow]
  %has_held = icmp ne ptr %held, null
  br i1 %has_held, label %let_go, label %leave
let_go:
  call void @decref(ptr %held)
  br label %leave
leave:
  ret ptr %result
fail:
  ret ptr null
}}
"""
